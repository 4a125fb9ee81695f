//! Hooks of `#[actor]`: private functions that are told when a state comes into memory and leaves it.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::{FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, Meta, ReturnType, Safety, Visibility};

use crate::actor::{context_param, receiver};

/// The hooks of an actor.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) activated: Option<Hook>,
    pub(crate) passivating: Option<Hook>,
}

/// One of them.
pub(crate) struct Hook {
    ident: Ident,
    context: bool,
}

impl Hooks {
    pub(crate) fn read(block: &ItemImpl, stateless: bool) -> syn::Result<Self> {
        let mut hooks = Self::default();
        for item in &block.items {
            let ImplItem::Fn(function) = item else { continue };
            for attr in &function.attrs {
                let (hook, name) = if attr.path().is_ident("activated") {
                    (&mut hooks.activated, "activated")
                } else if attr.path().is_ident("passivating") {
                    (&mut hooks.passivating, "passivating")
                } else {
                    continue;
                };
                if stateless && name == "passivating" {
                    let text = "a stateless worker is not passivated: it goes with its node";
                    return Err(syn::Error::new_spanned(attr, text));
                }
                if !matches!(attr.meta, Meta::Path(_)) {
                    let text = format!("this attribute takes no options: write `#[{name}]`");
                    return Err(syn::Error::new_spanned(attr, text));
                }
                if hook.is_some() {
                    return Err(syn::Error::new_spanned(
                        attr,
                        format!("there is another `#[{name}]`: an actor has one of each"),
                    ));
                }
                *hook = Some(Hook::read(function, name)?);
            }
        }
        Ok(hooks)
    }

    /// The functions of `Actor` that run them.
    pub(crate) fn functions(&self) -> TokenStream {
        let function = |name: &str, hook: &Option<Hook>| {
            let hook = hook.as_ref()?;
            let (name, ident) = (format_ident!("{name}"), &hook.ident);
            let context = hook.context.then(|| quote!(ctx));
            Some(quote! {
                fn #name(&mut self, ctx: &::perennial::Ctx<Self>) {
                    Self::#ident(self, #context)
                }
            })
        };
        let activated = function("on_activated", &self.activated);
        let passivating = function("on_passivating", &self.passivating);
        quote!(#activated #passivating)
    }
}

impl Hook {
    fn read(function: &ImplItemFn, name: &str) -> syn::Result<Self> {
        let sig = &function.sig;
        let shape = format!(
            "a hook is a private fn with `&mut self` and, if wanted, the context: \
             `#[{name}] fn {name}(&mut self, ctx: &Ctx<Self>)`"
        );
        let wrong = |at: &dyn ToTokens, why: &str| Err(syn::Error::new_spanned(at.to_token_stream(), why));
        if !matches!(function.vis, Visibility::Inherited) {
            return wrong(&function.vis, &shape);
        }
        if let Some(token) = &sig.asyncness {
            return wrong(
                token,
                "a hook is no `async fn`, as the actor's calls wait for it: await in a handler",
            );
        }
        if !matches!(sig.output, ReturnType::Default) {
            return wrong(
                &sig.output,
                "a hook returns nothing, as there is nobody to tell: panic to end what cannot go on",
            );
        }
        if !sig.generics.params.is_empty() {
            return wrong(&sig.generics, &shape);
        }
        if let Safety::Unsafe(token) = &sig.safety {
            return wrong(token, &shape);
        }
        if let Some(attr) = function.attrs.iter().find(|attr| attr.path().is_ident("cfg")) {
            return wrong(attr, "a hook cannot depend on `cfg`: put the `cfg` into its body");
        }
        receiver(function).map_err(|error| syn::Error::new(error.span(), &shape))?;
        let mut context = false;
        for (position, arg) in sig.inputs.iter().skip(1).enumerate() {
            let FnArg::Typed(arg) = arg else { continue };
            let context_of = context_param(&arg.ty).map_err(|_| syn::Error::new_spanned(&arg.ty, &shape))?;
            match context_of {
                Some(false) if position == 0 => context = true,
                Some(true) => {
                    let text = "a hook takes `&Ctx<Self>`: it makes no record, so it has no effects";
                    return wrong(&arg.ty, text);
                }
                _ => return wrong(arg, &shape),
            }
        }
        Ok(Self { ident: sig.ident.clone(), context })
    }
}
