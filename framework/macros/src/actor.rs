//! `#[actor]`: the handlers of an impl block, their dispatch and the typed reference.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::meta::ParseNestedMeta;
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Attribute, FnArg, GenericArgument, Ident, ImplItem, ImplItemFn, ItemImpl, Lifetime, LitInt, LitStr, Pat,
    Path, PathArguments, ReceiverKind, ReturnType, Safety, Token, Type, TypeImplTrait, TypeReference,
    Visibility,
};

use crate::Errors;
use crate::hooks::Hooks;
use crate::serde_attrs::plain;

/// Names that the typed reference has already.
const RESERVED: [&str; 5] = ["id", "events", "events_from", "with_timeout", "clone"];
/// Most parameters of a handler; serde has no longer tuples.
const PARAMS_MAX: usize = 16;
/// Longest kind, as in `perennial_core::id`.
const KIND_BYTES_MAX: usize = 64;
/// Most events that are kept, as in `perennial::limits`.
const EVENTS_KEPT_MAX: u32 = 100_000;
/// Most calls of a limit, as in `perennial::limits`.
const PARTITION_CALLS_MAX: u32 = 16 * 1024;
/// Largest limit of a state and of a record, as in `perennial::limits`.
const STATE_BYTES_MAX: u32 = 384 * 1024;
const RECORD_BYTES_MAX: u32 = 512 * 1024;

/// One remote function.
struct Handler {
    ident: Ident,
    write: bool,
    asynchronous: bool,
    context: bool,
    params: Vec<(Ident, Type)>,
    /// How old a read may be unless told otherwise, in milliseconds; 0: linearizable.
    stale_ms: u64,
    outcome: Outcome,
    attrs: Vec<Attribute>,
}

/// What a handler returns.
enum Outcome {
    /// `T`, or nothing.
    Value(Type),
    /// `Result<T, E>`.
    Result(Type, Type),
    /// `Reply<T, E>`.
    Reply(Type, Type),
    /// `Result<T, Fault>`.
    Fallible(Type),
}

#[derive(Default)]
struct Options {
    kind: Option<LitStr>,
    event: Option<Type>,
    /// Events that are kept.
    keep_events: Option<u32>,
    /// How long, in milliseconds.
    keep_events_for: Option<u64>,
    /// Limits: field, value, where it stands.
    limits: Vec<(&'static str, u32, Span)>,
    /// Where it says so.
    stateless: Option<Span>,
    /// The variant of `Balance`.
    balance: Option<Ident>,
    idempotent: Option<Span>,
}

pub(crate) fn expand(attr: TokenStream, item: TokenStream) -> TokenStream {
    let mut block = match syn::parse2::<ItemImpl>(item.clone()) {
        Ok(block) => block,
        Err(_) => {
            let text = "`#[actor]` stands on the impl block with the handlers: `#[actor] impl Cart { .. }`";
            let error = syn::Error::new(Span::call_site(), text).to_compile_error();
            return quote! { #item #error };
        }
    };
    let mut errors = Errors::default();
    let Some(path) = errors.take(actor_path(&block)) else {
        let errors = errors.into_tokens();
        return quote! { #block #errors };
    };
    let options = errors.take(Options::parse(attr)).unwrap_or_default();
    let hooks = errors.take(Hooks::read(&block, options.stateless.is_some())).unwrap_or_default();
    let mut handlers: Vec<Handler> = Vec::new();
    for item in &block.items {
        let ImplItem::Fn(function) = item else { continue };
        let read = function.attrs.iter().find(|attr| attr.path().is_ident("read"));
        if !matches!(function.vis, Visibility::Public(_)) {
            if let Some(attr) = read {
                let text = "`#[read]` stands on a handler, and this is none: make it a `pub fn`";
                errors.push(syn::Error::new_spanned(attr, text));
            }
            continue;
        }
        if let Some(handler) = errors.take(Handler::read(function, &path)) {
            if handler.write && options.stateless.is_some() {
                let text = "a stateless worker takes `&self`: nothing it holds is kept or replicated";
                errors.push(syn::Error::new_spanned(&function.sig.inputs, text));
            }
            if let (Some(attr), Some(_)) = (read, options.stateless) {
                let text = "a stateless worker has no state that an answer could be behind: remove `#[read]`";
                errors.push(syn::Error::new_spanned(attr, text));
            }
            if handlers.iter().any(|other| other.ident == handler.ident) {
                errors.push(syn::Error::new(handler.ident.span(), "two handlers have this name"));
            } else {
                handlers.push(handler);
            }
        }
    }
    for item in &mut block.items {
        if let ImplItem::Fn(function) = item {
            let ours = ["read", "activated", "passivating"];
            function.attrs.retain(|attr| !ours.iter().any(|name| attr.path().is_ident(name)));
        }
    }
    let actor = actor_impl(&path, &options, &hooks, &handlers);
    let reference = reference(&path, &options, &handlers);
    let errors = errors.into_tokens();
    quote! {
        #[allow(unreachable_pub, reason = "`pub` says that a handler is remote")]
        #block
        #actor
        #reference
        #errors
    }
}

/// The type of an inherent impl block without parameters.
fn actor_path(block: &ItemImpl) -> syn::Result<Path> {
    if let Some((path, _)) = &block.trait_ {
        let text = "`#[actor]` stands on the inherent impl block with the handlers: `impl Cart { .. }`";
        return Err(syn::Error::new_spanned(path, text));
    }
    let plain_path = match &*block.self_ty {
        Type::Path(ty) if ty.qself.is_none() => Some(&ty.path),
        _ => None,
    };
    let simple = plain_path.filter(|path| path.segments.iter().all(|s| s.arguments.is_none()));
    match simple {
        Some(path) if block.generics.params.is_empty() => Ok(path.clone()),
        _ => Err(syn::Error::new_spanned(
            &block.self_ty,
            "an actor is a struct or enum without parameters: its name is the kind of its actors",
        )),
    }
}

impl Options {
    fn parse(attr: TokenStream) -> syn::Result<Self> {
        let mut options = Self::default();
        let mut given = Vec::new();
        let parser = syn::meta::parser(|meta| {
            if given.contains(&meta.path) {
                return Err(meta.error("this option is given twice"));
            }
            given.push(meta.path.clone());
            if meta.path.is_ident("kind") {
                options.kind = Some(check_kind(meta.value()?.parse()?)?);
            } else if meta.path.is_ident("event") {
                options.event = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("keep_events") {
                let what = "the events that are kept are a number";
                options.keep_events = Some(number(&meta, what, EVENTS_KEPT_MAX)?.0);
            } else if meta.path.is_ident("keep_events_for") {
                let what =
                    "how long events are kept is a number with its unit, `s`, `m`, `h` or `d`: `\"24h\"`";
                options.keep_events_for = Some(text(&meta, millis, what)?.0);
            } else if let Some(field) = ["mailbox", "concurrency"].into_iter().find(|f| meta.path.is_ident(f))
            {
                let what = format!("`{field}` is a number of calls");
                let (limit, span) = number(&meta, &what, PARTITION_CALLS_MAX)?;
                options.limits.push((field, limit, span));
            } else if let Some((field, max)) =
                [("state_bytes", STATE_BYTES_MAX), ("record_bytes", RECORD_BYTES_MAX)]
                    .into_iter()
                    .find(|(field, _)| meta.path.is_ident(field))
            {
                let what = format!(
                    "`{field}` is a size up to \"{}KiB\", a number with its unit, `B`, `KiB` or `MiB`: \"64KiB\"",
                    max / 1024
                );
                let within = |given: &str| bytes(given).filter(|size| *size <= max);
                let (limit, span) = text(&meta, within, &what)?;
                options.limits.push((field, limit, span));
            } else if meta.path.is_ident("stateless") {
                options.stateless = Some(alone(&meta)?);
            } else if meta.path.is_ident("balance") {
                let known = "`balance` is one of `\"round_robin\"`, `\"least_in_flight\"`, `\"power_of_two\"`, \
                             `\"weighted\"`, `\"by_key\"`";
                let (variant, span) = text(&meta, balance, known)?;
                options.balance = Some(Ident::new(variant, span));
            } else if meta.path.is_ident("idempotent") {
                options.idempotent = Some(alone(&meta)?);
            } else {
                let text = "unknown option: `#[actor]` takes `kind = \"name\"`, `event = EventType`, \
                            `keep_events = 1000`, `keep_events_for = \"24h\"`, `mailbox = 64`, `concurrency = 100`, \
                            `state_bytes = \"64KiB\"`, `record_bytes = \"64KiB\"`, `stateless`, and with that \
                            `balance = \"..\"` and `idempotent`";
                return Err(meta.error(text));
            }
            Ok(())
        });
        parser.parse2(attr.clone())?;
        options.check(&attr)?;
        Ok(options)
    }

    /// The constant of `Actor`, if something is said of it.
    fn retention(&self) -> Option<TokenStream> {
        if self.keep_events.is_none() && self.keep_events_for.is_none() {
            return None;
        }
        let count = self.keep_events.map(|count| quote!(count: #count,));
        let millis = self.keep_events_for.map(|millis| quote!(millis: #millis,));
        Some(quote! {
            const RETENTION: ::perennial::actor::Retention =
                ::perennial::actor::Retention { #count #millis ..::perennial::actor::Retention::DEFAULT };
        })
    }

    fn check(&self, attr: &TokenStream) -> syn::Result<()> {
        let keeps = self.keep_events.is_some() || self.keep_events_for.is_some();
        if self.stateless.is_none() {
            if keeps && self.event.is_none() {
                let text = "what is kept of events needs `event = EventType`: the actor publishes none";
                return Err(syn::Error::new_spanned(attr, text));
            }
            let text = "`balance` and `idempotent` are about stateless workers: write `stateless` too";
            let given = self.balance.as_ref().map(Ident::span).or(self.idempotent);
            return given.map_or(Ok(()), |span| Err(syn::Error::new(span, text)));
        }
        if keeps || self.event.is_some() {
            let text = "a stateless worker publishes nothing: its turns are not in a log";
            let at = self.event.as_ref().map_or_else(|| attr.clone(), ToTokens::to_token_stream);
            return Err(syn::Error::new_spanned(at, text));
        }
        match self.limits.iter().find(|(field, ..)| *field != "concurrency") {
            Some((field, _, span)) => {
                let text =
                    format!("a stateless worker has no `{field}`: `concurrency` limits its calls on a node");
                Err(syn::Error::new(*span, text))
            }
            None => Ok(()),
        }
    }

    /// The constant `OPTIONS` of the actor.
    fn constant(&self, hooks: &Hooks) -> TokenStream {
        let limits = self.limits.iter().map(|(field, value, span)| {
            let ident = Ident::new(field, *span);
            match *field {
                "concurrency" => quote_spanned!(*span=> #ident: ::core::option::Option::Some(#value),),
                _ => quote_spanned!(*span=> #ident: #value,),
            }
        });
        let span = self.limits.first().map_or_else(Span::call_site, |(_, _, span)| *span);
        let limits = quote_spanned! {span=>
            ::perennial::options::Limits { #(#limits)* ..::perennial::options::Limits::DEFAULT }.checked()
        };
        let (activated, passivating) = (hooks.activated.is_some(), hooks.passivating.is_some());
        let pool = match self.stateless {
            None => quote!(::core::option::Option::None),
            Some(span) => {
                let usual = Ident::new("PowerOfTwo", span);
                let balance = self.balance.as_ref().unwrap_or(&usual);
                let idempotent = self.idempotent.is_some();
                quote! {
                    ::core::option::Option::Some(::perennial::options::Pool {
                        balance: ::perennial::options::Balance::#balance,
                        idempotent: #idempotent,
                    })
                }
            }
        };
        quote! {
            ::perennial::options::Options {
                limits: #limits,
                hooks: ::perennial::options::Hooks { activated: #activated, passivating: #passivating },
                pool: #pool,
            }
        }
    }
}

/// The number of an option, from 1 to `max`, and where it stands.
fn number(meta: &ParseNestedMeta<'_>, what: &str, max: u32) -> syn::Result<(u32, Span)> {
    let wrong = |span| syn::Error::new(span, format!("{what} from 1 to {max}"));
    let given: LitInt = meta.value()?.parse().map_err(|error: syn::Error| wrong(error.span()))?;
    let value = given.base10_parse().ok().filter(|value| (1..=max).contains(value));
    value.map(|value| (value, given.span())).ok_or_else(|| wrong(given.span()))
}

/// The text of an option as `read` understands it, and where it stands.
fn text<T>(
    meta: &ParseNestedMeta<'_>,
    read: impl FnOnce(&str) -> Option<T>,
    what: &str,
) -> syn::Result<(T, Span)> {
    let wrong = |span| syn::Error::new(span, what);
    let given: LitStr = meta.value()?.parse().map_err(|error: syn::Error| wrong(error.span()))?;
    read(&given.value()).map(|value| (value, given.span())).ok_or_else(|| wrong(given.span()))
}

/// Where an option stands that takes no value.
fn alone(meta: &ParseNestedMeta<'_>) -> syn::Result<Span> {
    if meta.input.is_empty() || meta.input.peek(Token![,]) {
        return Ok(meta.path.span());
    }
    Err(meta.input.error("this option takes no value: name it, or leave it out"))
}

/// The variant of `Balance` that a name stands for.
fn balance(text: &str) -> Option<&'static str> {
    Some(match text {
        "round_robin" => "RoundRobin",
        "least_in_flight" => "LeastInFlight",
        "power_of_two" => "PowerOfTwo",
        "weighted" => "Weighted",
        "by_key" => "ByKey",
        _ => return None,
    })
}

/// `512B`, `64KiB`, `1MiB`; not 0.
fn bytes(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let of_unit = match unit {
        "B" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(of_unit).filter(|bytes| *bytes > 0)
}

fn check_kind(kind: LitStr) -> syn::Result<LitStr> {
    let name = kind.value();
    let fits = (1..=KIND_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if fits {
        return Ok(kind);
    }
    let text = format!("a kind has 1 to {KIND_BYTES_MAX} characters of A-Z a-z 0-9 . _ -");
    Err(syn::Error::new(kind.span(), text))
}

impl Handler {
    fn read(function: &ImplItemFn, actor: &Path) -> syn::Result<Self> {
        let sig = &function.sig;
        refuse_qualifiers(function)?;
        let write = receiver(function)?;
        let mut context = false;
        let mut params = Vec::new();
        for (position, arg) in sig.inputs.iter().skip(1).enumerate() {
            let FnArg::Typed(arg) = arg else { continue };
            if let Some(mutable) = context_param(&arg.ty)? {
                if position > 0 {
                    return Err(syn::Error::new_spanned(arg, "the context comes first, right after `self`"));
                }
                if mutable && !write {
                    let text = "a read (`&self`) takes `&Ctx<Self>`: it cannot send, schedule or publish; make it \
                                `&mut self` if it should";
                    return Err(syn::Error::new_spanned(&arg.ty, text));
                }
                context = true;
                continue;
            }
            params.push((param_name(&arg.pat)?, owned(&arg.ty, actor)?));
        }
        if params.len() > PARAMS_MAX {
            let text =
                format!("a handler takes at most {PARAMS_MAX} parameters: put them into a `#[data]` struct");
            return Err(syn::Error::new_spanned(&sig.inputs, text));
        }
        let attrs =
            function.attrs.iter().filter(|a| a.path().is_ident("doc") || a.path().is_ident("deprecated"));
        Ok(Self {
            ident: sig.ident.clone(),
            write,
            asynchronous: sig.asyncness.is_some(),
            context,
            params,
            stale_ms: stale(function, write)?,
            outcome: Outcome::read(&sig.output, actor)?,
            attrs: attrs.cloned().collect(),
        })
    }

    /// Its entry in `METHODS`.
    fn description(&self) -> TokenStream {
        let name = plain(&self.ident);
        let (write, asynchronous, doc) = (self.write, self.asynchronous, first_paragraph(&self.attrs));
        let stale_ms = self.stale_ms;
        let params = self.params.iter().map(|(ident, ty)| {
            let (name, text) = (plain(ident), type_text(ty));
            quote! {
                ::perennial::actor::Param { name: #name, ty: #text, schema: <#ty as ::perennial::Data>::schema }
            }
        });
        let value = self.outcome.value();
        let returns = type_text(value);
        quote! {
            ::perennial::actor::Method {
                name: #name,
                write: #write,
                asynchronous: #asynchronous,
                stale_ms: #stale_ms,
                params: &[#(#params),*],
                returns: #returns,
                returns_schema: <#value as ::perennial::Data>::schema,
                doc: #doc,
            }
        }
    }

    /// Its arm in `read` or `write`.
    fn arm(&self, number: usize) -> TokenStream {
        let types = self.params.iter().map(|(_, ty)| ty);
        let locals: Vec<_> = (0..self.params.len()).map(|n| format_ident!("argument_{n}")).collect();
        let ident = &self.ident;
        let context = self.context.then(|| quote!(ctx,));
        let await_ = self.asynchronous.then(|| quote!(.await));
        let encode = self.outcome.encoder();
        let span = ident.span();
        let answer = quote_spanned! {span=>
            ::perennial::actor::Answer::#encode(format, Self::#ident(self, #context #(#locals),*)#await_)
        };
        let run = if self.asynchronous {
            quote_spanned! {span=>
                ::perennial::actor::Run::Later(::std::boxed::Box::pin(async move { #answer }))
            }
        } else {
            quote! { ::perennial::actor::Run::Done(#answer) }
        };
        quote_spanned! {span=>
            #number => {
                let format = args.format;
                match args.decode::<(#(#types,)*)>(PERENNIAL_KIND, &PERENNIAL_METHODS[#number]) {
                    ::core::result::Result::Ok((#(#locals,)*)) => #run,
                    ::core::result::Result::Err(fault) => {
                        ::perennial::actor::Run::Done(::perennial::actor::Answer::Fault(fault))
                    }
                }
            }
        }
    }

    /// Its method on the typed reference.
    fn call(&self, actor: &Path, stateless: bool) -> TokenStream {
        let (ident, attrs, name) = (&self.ident, &self.attrs, plain(&self.ident));
        let undocumented = !attrs.iter().any(|attr| attr.path().is_ident("doc"));
        let doc = undocumented.then(|| {
            let text = format!("Calls `{}::{name}`.", type_text(actor));
            quote!(#[doc = #text])
        });
        let params = self.params.iter().map(|(ident, ty)| quote!(#ident: #ty));
        let names = self.params.iter().map(|(ident, _)| ident);
        let value = self.outcome.value();
        let failure = match &self.outcome {
            Outcome::Value(_) | Outcome::Fallible(_) => quote!(::perennial::Fault),
            Outcome::Result(_, error) | Outcome::Reply(_, error) => quote!(::perennial::CallError<#error>),
        };
        let span = ident.span();
        let stale_ms = self.stale_ms;
        let stale = (stale_ms > 0).then(|| quote!(.stale(::core::time::Duration::from_millis(#stale_ms))));
        let (call, body) = if stateless {
            let call = quote!(::perennial::pool::PoolCall);
            (call, quote_spanned!(span=> self.handle.worker::<#actor, _, _>(#name, &(#(#names,)*))))
        } else {
            let call = quote!(::perennial::Call);
            (call, quote_spanned!(span=> self.handle.method(#name, &(#(#names,)*)) #stale))
        };
        quote! {
            #(#attrs)*
            #doc
            pub fn #ident(&self, #(#params),*) -> #call<#value, #failure> {
                #body
            }
        }
    }
}

/// The milliseconds of `#[read(stale = "1s")]`; 0 without it.
fn stale(function: &ImplItemFn, write: bool) -> syn::Result<u64> {
    let mut stale_ms = 0;
    for attr in function.attrs.iter().filter(|attr| attr.path().is_ident("read")) {
        if write {
            let text = "`#[read]` stands on a read: take `&self`";
            return Err(syn::Error::new_spanned(attr, text));
        }
        attr.parse_nested_meta(|meta| {
            if !meta.path.is_ident("stale") {
                return Err(meta.error("unknown option: `#[read]` takes `stale = \"1s\"`"));
            }
            let what =
                "how old an answer may be is a number with its unit, `ms`, `s`, `m` or `h`: `\"500ms\"`";
            stale_ms = text(&meta, millis, what)?.0;
            Ok(())
        })?;
    }
    Ok(stale_ms)
}

/// `500ms`, `1s`, `5m`, `2h`, `7d`; not 0.
fn millis(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let of_unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(of_unit).filter(|ms| *ms > 0)
}

fn refuse_qualifiers(function: &ImplItemFn) -> syn::Result<()> {
    let sig = &function.sig;
    let qualifier = if let Some(token) = &sig.constness {
        Some(("const", token.span()))
    } else if let Safety::Unsafe(token) = &sig.safety {
        Some(("unsafe", token.span()))
    } else {
        sig.abi.as_ref().map(|abi| ("extern", abi.span()))
    };
    if let Some((what, span)) = qualifier {
        return Err(syn::Error::new(span, format!("a handler cannot be `{what}`; a private fn can")));
    }
    if let Some(attr) = function.attrs.iter().find(|attr| attr.path().is_ident("cfg")) {
        let text = "a handler cannot depend on `cfg`: every node must have the same handlers";
        return Err(syn::Error::new_spanned(attr, text));
    }
    if !sig.generics.params.is_empty() {
        let text = "a handler cannot be generic: its arguments travel between nodes, name their types";
        return Err(syn::Error::new_spanned(&sig.generics, text));
    }
    let name = plain(&sig.ident);
    if RESERVED.contains(&&*name) {
        let text = format!("the typed reference has a method `{name}` of its own: choose another name");
        return Err(syn::Error::new(sig.ident.span(), text));
    }
    Ok(())
}

/// Whether the handler writes.
pub(crate) fn receiver(function: &ImplItemFn) -> syn::Result<bool> {
    let sig = &function.sig;
    let Some(receiver) = sig.receiver() else {
        let text = "a `pub fn` is a handler and needs `&self` (read) or `&mut self` (write); make it private, or \
                    move it to an impl block without `#[actor]`";
        return Err(syn::Error::new(sig.ident.span(), text));
    };
    match &receiver.kind {
        ReceiverKind::Reference(_, None, mutability) => Ok(mutability.is_some()),
        _ => Err(syn::Error::new_spanned(
            receiver,
            "a handler takes `&self` (read) or `&mut self` (write): the state stays with the actor",
        )),
    }
}

/// `Some(mutable)` for `&Ctx<..>` and `&mut Ctx<..>`.
pub(crate) fn context_param(ty: &Type) -> syn::Result<Option<bool>> {
    let is_context = |ty: &Type| match ty {
        Type::Path(ty) => ty.path.segments.last().is_some_and(|segment| segment.ident == "Ctx"),
        _ => false,
    };
    match ty {
        Type::Reference(reference) if is_context(&reference.elem) => Ok(Some(reference.mutability.is_some())),
        ty if is_context(ty) => Err(syn::Error::new_spanned(
            ty,
            "the context is borrowed: `&mut Ctx<Self>` in a write, `&Ctx<Self>` in a read",
        )),
        _ => Ok(None),
    }
}

fn param_name(pat: &Pat) -> syn::Result<Ident> {
    match pat {
        Pat::Ident(pat) if pat.by_ref.is_none() && pat.subpat.is_none() => Ok(pat.ident.clone()),
        _ => Err(syn::Error::new_spanned(
            pat,
            "a parameter needs a plain name: callers give arguments by name",
        )),
    }
}

/// The type with `Self` replaced; refuses what cannot travel.
fn owned(ty: &Type, actor: &Path) -> syn::Result<Type> {
    let mut check = Owned { actor, error: None };
    let mut ty = ty.clone();
    check.visit_type_mut(&mut ty);
    check.error.map_or(Ok(ty), Err)
}

struct Owned<'a> {
    actor: &'a Path,
    error: Option<syn::Error>,
}

impl VisitMut for Owned<'_> {
    fn visit_type_reference_mut(&mut self, ty: &mut TypeReference) {
        let instead = match &*ty.elem {
            Type::Path(path) if path.path.is_ident("str") => "String".to_owned(),
            Type::Slice(slice) => format!("Vec<{}>", type_text(&slice.elem)),
            other => type_text(other),
        };
        let text =
            format!("what handlers take and return travels between nodes, so it is owned: use `{instead}`");
        self.error.get_or_insert(syn::Error::new_spanned(ty, text));
    }
    fn visit_type_impl_trait_mut(&mut self, ty: &mut TypeImplTrait) {
        let text =
            "what handlers take and return travels between nodes: name the type instead of `impl Trait`";
        self.error.get_or_insert(syn::Error::new_spanned(ty, text));
    }
    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident != "static" {
            let text = "what handlers take and return travels between nodes, so it is owned: use a type without a \
                        lifetime";
            self.error.get_or_insert(syn::Error::new(lifetime.span(), text));
        }
    }
    fn visit_path_mut(&mut self, path: &mut Path) {
        if path.segments.first().is_some_and(|segment| segment.ident == "Self") {
            let rest = path.segments.iter().skip(1).cloned();
            let segments = self.actor.segments.iter().cloned().chain(rest).collect();
            *path = Path { leading_colon: self.actor.leading_colon, segments };
        }
        visit_mut::visit_path_mut(self, path);
    }
}

impl Outcome {
    fn read(output: &ReturnType, actor: &Path) -> syn::Result<Self> {
        let ReturnType::Type(_, ty) = output else {
            return Ok(Self::Value(syn::parse_quote!(())));
        };
        let ty = owned(ty, actor)?;
        let Some((name, args)) = last_segment(&ty) else { return Ok(Self::Value(ty)) };
        if name != "Result" && name != "Reply" {
            return Ok(Self::Value(ty));
        }
        let [value, error] = &args[..] else {
            let text = format!("write both types, `{name}<T, E>`: callers get them as they stand here");
            return Err(syn::Error::new_spanned(&ty, text));
        };
        if name == "Reply" {
            return Ok(Self::Reply(value.clone(), error.clone()));
        }
        Ok(match last_segment(error) {
            Some((name, inner)) if name == "CallError" && inner.len() == 1 => {
                Self::Reply(value.clone(), inner[0].clone())
            }
            Some((name, _)) if name == "Fault" => Self::Fallible(value.clone()),
            _ => Self::Result(value.clone(), error.clone()),
        })
    }

    fn value(&self) -> &Type {
        match self {
            Self::Value(value) | Self::Result(value, _) | Self::Reply(value, _) | Self::Fallible(value) => {
                value
            }
        }
    }

    fn error(&self) -> Option<&Type> {
        match self {
            Self::Value(_) | Self::Fallible(_) => None,
            Self::Result(_, error) | Self::Reply(_, error) => Some(error),
        }
    }

    /// The function of `Answer` that encodes it.
    fn encoder(&self) -> Ident {
        let name = match self {
            Self::Value(_) => "of_value",
            Self::Result(..) => "of_result",
            Self::Reply(..) => "of_reply",
            Self::Fallible(_) => "of_fallible",
        };
        Ident::new(name, Span::call_site())
    }
}

/// Name and type arguments of the last segment of a path.
fn last_segment(ty: &Type) -> Option<(String, Vec<Type>)> {
    let Type::Path(ty) = ty else { return None };
    let segment = ty.path.segments.last()?;
    let types = match &segment.arguments {
        PathArguments::AngleBracketed(list) => {
            let types = list.args.iter().filter_map(|arg| match arg {
                GenericArgument::Type(ty) => Some(ty.clone()),
                _ => None,
            });
            types.collect()
        }
        _ => Vec::new(),
    };
    Some((segment.ident.to_string(), types))
}

fn actor_impl(path: &Path, options: &Options, hooks: &Hooks, handlers: &[Handler]) -> TokenStream {
    let name = path.segments.last().map(|segment| plain(&segment.ident)).unwrap_or_default();
    let kind = options.kind.as_ref().map_or(name, LitStr::value);
    let event = options.event.as_ref().map_or_else(|| quote!(()), ToTokens::to_token_stream);
    let retention = options.retention();
    let reference = reference_name(path);
    let descriptions = handlers.iter().map(Handler::description);
    let errors = handlers.iter().filter_map(|handler| handler.outcome.error());
    let arms = |write: bool| {
        let own = handlers.iter().enumerate().filter(move |(_, handler)| handler.write == write);
        own.map(|(number, handler)| handler.arm(number))
    };
    let (reads, writes) = (arms(false), arms(true));
    let (constant, hooks) = (options.constant(hooks), hooks.functions());
    // The constants stand outside, so that a missing bound of `Actor` is reported once, on the type.
    quote! {
        #[allow(warnings, clippy::all, clippy::pedantic, reason = "generated by #[actor]")]
        const _: () = {
            const PERENNIAL_KIND: &::core::primitive::str = #kind;
            const PERENNIAL_METHODS: &[::perennial::actor::Method] = &[#(#descriptions),*];
            const PERENNIAL_OPTIONS: ::perennial::options::Options = #constant;

            // Points at an error type that is no data; `METHODS` does for values and parameters.
            #(const _: fn(&mut ::perennial::schema::Types) -> ::perennial::schema::Type =
                <#errors as ::perennial::Data>::schema;)*

            #[automatically_derived]
            impl ::perennial::Actor for #path {
                const KIND: &'static ::core::primitive::str = PERENNIAL_KIND;
                type Event = #event;
                #retention
                type Ref = #reference;
                const METHODS: &'static [::perennial::actor::Method] = PERENNIAL_METHODS;
                const OPTIONS: ::perennial::options::Options = PERENNIAL_OPTIONS;

                #hooks
                fn make_ref(handle: ::perennial::call::ActorHandle) -> #reference {
                    #reference { handle }
                }
                fn read<'a>(
                    &'a self,
                    ctx: &'a ::perennial::Ctx<Self>,
                    method: usize,
                    args: ::perennial::actor::Args,
                ) -> ::perennial::actor::Run<'a> {
                    match method {
                        #(#reads)*
                        _ => ::perennial::__private::no_such_handler(PERENNIAL_KIND, PERENNIAL_METHODS, method),
                    }
                }
                fn write<'a>(
                    &'a mut self,
                    ctx: &'a mut ::perennial::Ctx<Self>,
                    method: usize,
                    args: ::perennial::actor::Args,
                ) -> ::perennial::actor::Run<'a> {
                    match method {
                        #(#writes)*
                        _ => ::perennial::__private::no_such_handler(PERENNIAL_KIND, PERENNIAL_METHODS, method),
                    }
                }
            }
        };
    }
}

fn reference_name(path: &Path) -> Ident {
    let (name, span) =
        path.segments.last().map_or((String::new(), path.span()), |s| (plain(&s.ident), s.ident.span()));
    Ident::new(&format!("{name}Ref"), span)
}

fn reference(path: &Path, options: &Options, handlers: &[Handler]) -> TokenStream {
    let name = reference_name(path);
    let actor = type_text(path);
    let doc = format!("A reference to an actor of type [`{actor}`]: a method for each of its handlers.");
    let calls = handlers.iter().map(|handler| handler.call(path, options.stateless.is_some()));
    let events = options.event.as_ref().map(|event| {
        quote! {
            /// The events that the actor publishes from now on.
            pub fn events(&self) -> ::perennial::call::Events<#event> {
                self.events_from(::perennial::EventsFrom::Now)
            }
            /// The actor's events from a chosen place on, to resume a stream.
            pub fn events_from(&self, from: ::perennial::EventsFrom) -> ::perennial::call::Events<#event> {
                self.handle.events::<#path>(from)
            }
        }
    });
    quote! {
        #[doc = #doc]
        #[allow(warnings, clippy::all, clippy::pedantic, reason = "generated by #[actor]")]
        #[derive(::core::clone::Clone, ::core::fmt::Debug)]
        pub struct #name {
            handle: ::perennial::call::ActorHandle,
        }

        #[allow(warnings, clippy::all, clippy::pedantic, reason = "generated by #[actor]")]
        impl #name {
            #(#calls)*
            #events
            /// The actor's id; a fault when the key it was made with is not valid.
            ///
            /// # Errors
            /// `Fault::BadName`.
            pub fn id(&self) -> ::core::result::Result<&::perennial::call::ActorId, &::perennial::Fault> {
                self.handle.id()
            }
            /// The same reference with another time-out for its calls.
            #[must_use]
            pub fn with_timeout(self, timeout: ::core::time::Duration) -> Self {
                Self { handle: self.handle.with_timeout(timeout) }
            }
        }
    }
}

/// A type as people write it: `Vec<String>`.
fn type_text(ty: &impl ToTokens) -> String {
    let mut text = ty.to_token_stream().to_string();
    let tighten = [
        (" ::", "::"),
        (":: ", "::"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        (" ;", ";"),
        ("( ", "("),
        (" )", ")"),
    ];
    for (wide, tight) in tighten {
        text = text.replace(wide, tight);
    }
    text.replace(",>", ">")
}

fn first_paragraph(attrs: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        let Ok(syn::MetaNameValue { value, .. }) = attr.meta.require_name_value() else { continue };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(line), .. }) = value else { continue };
        lines.extend(line.value().lines().map(|line| line.trim().to_owned()));
        if line.value().is_empty() {
            lines.push(String::new());
        }
    }
    let paragraph = lines.iter().skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
    paragraph.cloned().collect::<Vec<_>>().join(" ")
}
