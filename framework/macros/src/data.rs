//! `#[data]`: derives and the schema of a struct or enum.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Data, DeriveInput, Fields, Ident, Path, Token, Type};

use crate::Errors;
use crate::serde_attrs::{Place, RenameRule, SerdeAttrs, plain};

pub(crate) fn expand(attr: TokenStream, item: TokenStream) -> TokenStream {
    let mut item = match syn::parse2::<DeriveInput>(item) {
        Ok(item) => item,
        Err(error) => return error.to_compile_error(),
    };
    let mut errors = Errors::default();
    let Options { upgrade_from, removed } = errors.take(options(attr)).unwrap_or_default();
    if let Data::Union(data) = &item.data {
        return syn::Error::new(data.union_token.span, "`#[data]` is for structs and enums, not for unions")
            .to_compile_error();
    }
    if !item.generics.params.is_empty() {
        let text =
            "`#[data]` types have no parameters: schemas are kept by type name, write one type for each use";
        return syn::Error::new_spanned(&item.generics, text).to_compile_error();
    }

    let container = SerdeAttrs::read(&item.attrs, Place::Container, &mut errors);
    refuse_kept(&removed, &item.data, &container, &mut errors);
    let shape = shape_of(&item.data, &container, &mut errors);
    if errors.0.is_some() {
        // Without what was refused, serde has nothing to add to our errors.
        strip_serde(&mut item);
    }
    let derives = derives(&item.attrs, &container);
    let name = plain(&item.ident);
    let ident = &item.ident;
    let upgrade = upgrade_from.map(upgrade_methods);
    let removed: Vec<_> = removed.iter().map(Removed::name).collect();
    let removed = (!removed.is_empty()).then(|| {
        let ty = container.rename.clone().unwrap_or_else(|| name.clone());
        quote! { types.removed(#ty, &[#(#removed),*]); }
    });
    let errors = errors.into_tokens();
    quote! {
        #derives
        #item

        #[automatically_derived]
        impl ::perennial::Data for #ident {
            fn schema(types: &mut ::perennial::schema::Types) -> ::perennial::schema::Type {
                #removed
                types.named::<Self>(#name, |types| #shape)
            }
            #upgrade
        }
        #errors
    }
}

/// What stands in `#[data(..)]`.
#[derive(Default)]
struct Options {
    upgrade_from: Option<Type>,
    removed: Vec<Removed>,
}

/// A field that the type has given up: `field`, or `Variant.field`, each as serde names it.
struct Removed {
    variant: Option<Ident>,
    field: Ident,
}

impl Removed {
    fn name(&self) -> String {
        let variant = self.variant.as_ref().map(|variant| format!("{}.", plain(variant)));
        format!("{}{}", variant.unwrap_or_default(), plain(&self.field))
    }
}

impl Parse for Removed {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let field = Ident::parse_any(input)?;
        if input.parse::<Option<Token![.]>>()?.is_some() {
            return Ok(Self { variant: Some(field), field: Ident::parse_any(input)? });
        }
        Ok(Self { variant: None, field })
    }
}

fn options(attr: TokenStream) -> syn::Result<Options> {
    let mut options = Options::default();
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("upgrade_from") {
            options.upgrade_from = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("removed") {
            let fields;
            syn::parenthesized!(fields in meta.input);
            options.removed.extend(fields.parse_terminated(Removed::parse, Token![,])?);
        } else {
            return Err(meta.error(
                "unknown option: `#[data]` takes `upgrade_from = OldType` and `removed(field, Variant.field)`",
            ));
        }
        Ok(())
    });
    parser.parse2(attr)?;
    Ok(options)
}

/// A field that is there is not given up.
fn refuse_kept(removed: &[Removed], data: &Data, container: &SerdeAttrs, errors: &mut Errors) {
    let has = |fields: &Fields, rule: Option<RenameRule>, wanted: &str| {
        fields.iter().any(|field| {
            let attrs = SerdeAttrs::read(&field.attrs, Place::NamedField, &mut Errors::default());
            let plain = field.ident.as_ref().map(plain).unwrap_or_default();
            !attrs.skip
                && attrs.rename.or_else(|| rule.map(|rule| rule.field(&plain))).unwrap_or(plain) == wanted
        })
    };
    for Removed { variant, field } in removed {
        let wanted = plain(field);
        let kept = match (data, variant) {
            (Data::Struct(data), None) => has(&data.fields, container.rename_all, &wanted),
            (Data::Enum(data), Some(variant)) => data.variants.iter().any(|found| {
                found.ident == *variant && has(&found.fields, container.rename_all_fields, &wanted)
            }),
            (Data::Enum(_), None) => {
                let text = "a field of an enum is named with its variant: `removed(Variant.field)`";
                errors.push(syn::Error::new(field.span(), text));
                continue;
            }
            _ => {
                let text = "a struct has no variants: name the field alone, `removed(field)`";
                errors.push(syn::Error::new(field.span(), text));
                continue;
            }
        };
        if kept {
            let text = format!("the type still has `{wanted}`: only a field that is gone is given up");
            errors.push(syn::Error::new(field.span(), text));
        }
    }
}

fn upgrade_methods(old: Type) -> TokenStream {
    quote! {
        fn replaces() -> ::std::vec::Vec<u64> {
            ::perennial::__private::replaced::<#old>()
        }
        fn upgrade(
            bytes: &[u8],
            written_with: &::perennial::schema::Schema,
        ) -> ::core::result::Result<Self, ::perennial::schema::SchemaError> {
            ::perennial::__private::upgrade_from::<#old, Self>(bytes, written_with)
        }
    }
}

/// The derives that the item does not have yet.
fn derives(attrs: &[Attribute], container: &SerdeAttrs) -> TokenStream {
    let mut present = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("derive")) {
        let paths = attr.parse_args_with(Punctuated::<Path, Token![,]>::parse_terminated);
        let names =
            paths.into_iter().flatten().filter_map(|path| path.segments.last().map(|s| s.ident.to_string()));
        present.extend(names);
    }
    let wanted = [
        ("Clone", quote!(::core::clone::Clone)),
        ("Debug", quote!(::core::fmt::Debug)),
        ("PartialEq", quote!(::core::cmp::PartialEq)),
        ("Serialize", quote!(::perennial::__private::serde::Serialize)),
        ("Deserialize", quote!(::perennial::__private::serde::Deserialize)),
    ];
    let missing = |name: &str| !present.iter().any(|p| p == name);
    let add: Vec<_> = wanted.iter().filter(|(name, _)| missing(name)).map(|(_, path)| path).collect();
    let serde_crate = ((missing("Serialize") || missing("Deserialize")) && !container.names_crate)
        .then(|| quote!(#[serde(crate = "::perennial::__private::serde")]));
    quote! { #[derive(#(#add),*)] #serde_crate }
}

fn strip_serde(item: &mut DeriveInput) {
    let is_skip = |attr: &Attribute| attr.parse_args::<Ident>().is_ok_and(|entry| entry == "skip");
    let strip = |attrs: &mut Vec<Attribute>| {
        attrs.retain(|attr| !attr.path().is_ident("serde") || is_skip(attr));
    };
    strip(&mut item.attrs);
    match &mut item.data {
        Data::Struct(data) => data.fields.iter_mut().for_each(|field| strip(&mut field.attrs)),
        Data::Enum(data) => {
            for variant in &mut data.variants {
                strip(&mut variant.attrs);
                variant.fields.iter_mut().for_each(|field| strip(&mut field.attrs));
            }
        }
        Data::Union(_) => {}
    }
}

fn shape_of(data: &Data, container: &SerdeAttrs, errors: &mut Errors) -> TokenStream {
    match data {
        Data::Struct(data) => fields_shape(&data.fields, container.rename_all, errors),
        Data::Enum(data) => {
            let mut variants = Vec::new();
            for variant in &data.variants {
                refuse_cfg(&variant.attrs, errors);
                let attrs = SerdeAttrs::read(&variant.attrs, Place::Variant, errors);
                let plain = plain(&variant.ident);
                let name = attrs
                    .rename
                    .or_else(|| container.rename_all.map(|rule| rule.variant(&plain)))
                    .unwrap_or(plain);
                let shape =
                    fields_shape(&variant.fields, attrs.rename_all.or(container.rename_all_fields), errors);
                variants.push(quote! {
                    ::perennial::schema::Variant { name: ::std::string::String::from(#name), shape: #shape }
                });
            }
            quote! { ::perennial::schema::Shape::Enum(::std::vec![#(#variants),*]) }
        }
        Data::Union(_) => TokenStream::new(),
    }
}

fn fields_shape(fields: &Fields, rule: Option<RenameRule>, errors: &mut Errors) -> TokenStream {
    match fields {
        Fields::Unit => quote! { ::perennial::schema::Shape::Unit },
        Fields::Unnamed(fields) => {
            let mut types = Vec::new();
            for field in &fields.unnamed {
                refuse_cfg(&field.attrs, errors);
                SerdeAttrs::read(&field.attrs, Place::TupleField, errors);
                types.push(type_schema(&field.ty));
            }
            match &types[..] {
                [only] => quote! { ::perennial::schema::Shape::Newtype(#only) },
                _ => quote! { ::perennial::schema::Shape::Tuple(::std::vec![#(#types),*]) },
            }
        }
        Fields::Named(fields) => {
            let mut described = Vec::new();
            for field in &fields.named {
                refuse_cfg(&field.attrs, errors);
                let attrs = SerdeAttrs::read(&field.attrs, Place::NamedField, errors);
                if attrs.skip {
                    continue;
                }
                let plain = field.ident.as_ref().map(plain).unwrap_or_default();
                let name = attrs.rename.or_else(|| rule.map(|rule| rule.field(&plain))).unwrap_or(plain);
                let ty = type_schema(&field.ty);
                described.push(quote! {
                    ::perennial::schema::Field { name: ::std::string::String::from(#name), ty: #ty }
                });
            }
            quote! { ::perennial::schema::Shape::Struct(::std::vec![#(#described),*]) }
        }
    }
}

/// An attribute macro sees what `cfg` would remove, and the nodes of a cluster must agree.
fn refuse_cfg(attrs: &[Attribute], errors: &mut Errors) {
    let conditional = |attr: &&Attribute| attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr");
    for attr in attrs.iter().filter(conditional) {
        let text = "what is stored cannot depend on `cfg`: every node must read the same";
        errors.push(syn::Error::new_spanned(attr, text));
    }
}

fn type_schema(ty: &Type) -> TokenStream {
    quote! { <#ty as ::perennial::Data>::schema(types) }
}
