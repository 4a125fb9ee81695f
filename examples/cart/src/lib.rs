//! A shop on Perennial: carts, shelves, orders, accounts and a depot, and a page to shop with.
//!
//! Owns five actor types and their page. Shows a saga in place of a transaction: [`Cart::add`] has a
//! [`Stock`] set goods aside and confirms them with its own commit, and an [`Order`] has them paid and shipped,
//! or takes everything back. [`CartLoad`] puts all of it under
//! load and proves afterwards that nothing was lost or done twice.

mod account;
mod cart;
mod depot;
mod load;
mod order;
mod stock;

pub use account::*;
pub use cart::*;
pub use depot::*;
pub use load::CartLoad;
pub use order::*;
use perennial::{App, Asset};
pub use stock::*;

/// Adds the shop's actors and its page, which is at `/cart/`.
#[must_use]
pub fn register(app: App) -> App {
    app.actor::<Cart>()
        .actor::<Stock>()
        .actor::<Order>()
        .actor::<Account>()
        .actor::<Depot>()
        .page("cart", page)
}

fn page(path: &str) -> Option<Asset> {
    let (content_type, text) = match path {
        "" => ("text/html; charset=utf-8", include_str!("../page/index.html")),
        "cart.js" => ("text/javascript; charset=utf-8", include_str!("../page/cart.js")),
        "cart.css" => ("text/css; charset=utf-8", include_str!("../page/cart.css")),
        "perennial.js" => ("text/javascript; charset=utf-8", include_str!("../../web/perennial.js")),
        "perennial.css" => ("text/css; charset=utf-8", include_str!("../../web/perennial.css")),
        _ => return None,
    };
    Some(Asset { content_type: content_type.to_owned(), bytes: text.as_bytes().into() })
}
