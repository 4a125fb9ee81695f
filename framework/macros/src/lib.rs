//! The attribute macros of Perennial.
use proc_macro::TokenStream;
/// Derives what stored and sent types need.
#[proc_macro_attribute]
pub fn data(_attr: TokenStream, item: TokenStream) -> TokenStream {
    item
}
/// Makes an impl block an actor.
#[proc_macro_attribute]
pub fn actor(_attr: TokenStream, item: TokenStream) -> TokenStream {
    item
}
