//! Serde attributes: which ones the compact encoding can carry, and the names they give.

use quote::ToTokens;
use syn::meta::ParseNestedMeta;
use syn::{Attribute, Ident, LitStr, Token};

use crate::Errors;

/// Where an attribute stands.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Place {
    Container,
    Variant,
    NamedField,
    TupleField,
}

/// What the accepted attributes of one place say.
#[derive(Default)]
pub(crate) struct SerdeAttrs {
    pub(crate) rename: Option<String>,
    pub(crate) rename_all: Option<RenameRule>,
    pub(crate) rename_all_fields: Option<RenameRule>,
    pub(crate) skip: bool,
    pub(crate) names_crate: bool,
}

impl SerdeAttrs {
    /// Reads the `#[serde(..)]` attributes among `attrs`; what cannot be carried goes to `errors`.
    pub(crate) fn read(attrs: &[Attribute], place: Place, errors: &mut Errors) -> Self {
        let mut read = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("serde")) {
            let parsed = attr.parse_nested_meta(|meta| {
                let refused = read.entry(&meta, place)?;
                if let Some(why) = refused {
                    errors.push(meta.error(why));
                    skip_value(&meta)?;
                }
                Ok(())
            });
            errors.take(parsed);
        }
        read
    }

    /// Takes one `name`, `name = value` or `name(..)`; says why it is refused, if it is.
    fn entry(&mut self, meta: &ParseNestedMeta<'_>, place: Place) -> syn::Result<Option<String>> {
        let name = meta.path.to_token_stream().to_string();
        let renames = matches!(&*name, "rename" | "rename_all" | "rename_all_fields");
        if renames && meta.input.peek(syn::token::Paren) {
            return Ok(Some(
                "the same name must hold for writing and reading: use `= \"..\"` for both".into(),
            ));
        }
        match &*name {
            "rename" => self.rename = Some(meta.value()?.parse::<LitStr>()?.value()),
            "rename_all" => self.rename_all = RenameRule::parse(&meta.value()?.parse()?)?,
            "rename_all_fields" => self.rename_all_fields = RenameRule::parse(&meta.value()?.parse()?)?,
            "crate" => {
                self.names_crate = true;
                skip_value(meta)?;
            }
            "alias" | "default" | "expecting" => skip_value(meta)?,
            "skip" if place == Place::NamedField => self.skip = true,
            _ => return Ok(Some(refusal(&name, place))),
        }
        Ok(None)
    }
}

fn skip_value(meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
    if meta.input.peek(Token![=]) {
        meta.value()?.parse::<syn::Expr>()?;
    } else if meta.input.peek(syn::token::Paren) {
        let inner;
        syn::parenthesized!(inner in meta.input);
        inner.parse::<proc_macro2::TokenStream>()?;
    }
    Ok(())
}

fn refusal(name: &str, place: Place) -> String {
    let why = match name {
        "flatten" => "fields are stored by position, without their names: keep the inner struct as a field",
        "untagged" => "a variant is stored as its number: remove the attribute",
        "tag" | "content" => {
            "a variant is always stored as its number and shown as {\"Variant\": ..}: remove it"
        }
        "skip_serializing_if" => {
            "fields are stored by position, so a field left out would shift the others: use `Option<T>` or \
             `#[serde(default)]`"
        }
        "skip_serializing" | "skip_deserializing" => {
            "what is written must be what is read: use `#[serde(skip)]` on a named field"
        }
        "skip" if place == Place::Variant => {
            "it would change the numbers of the variants after it: remove it"
        }
        "skip" => "elements are stored by position: `skip` is for named fields",
        "other" => "a variant is stored as its number: remove it",
        "with" | "serialize_with" | "deserialize_with" | "from" | "try_from" | "into" | "remote"
        | "getter" => {
            "the schema is taken from the fields and must match what is stored: store a type that has \
             `#[data]` itself, or implement `perennial::Data` by hand"
        }
        "transparent" => "`struct Id(u64)` is stored and shown as its content already: use that form",
        "deny_unknown_fields" => "it would refuse states written before a field was removed: remove it",
        "bound" | "borrow" => "stored types own their data and have no parameters: remove it",
        _ => "`#[data]` does not know this attribute",
    };
    format!("`{name}` does not work in `#[data]`: {why}")
}

/// A value of `rename_all`.
#[derive(Clone, Copy)]
pub(crate) enum RenameRule {
    Lower,
    Upper,
    Pascal,
    Camel,
    Snake,
    ScreamingSnake,
    Kebab,
    ScreamingKebab,
}

impl RenameRule {
    fn parse(text: &LitStr) -> syn::Result<Option<Self>> {
        Ok(Some(match &*text.value() {
            "lowercase" => Self::Lower,
            "UPPERCASE" => Self::Upper,
            "PascalCase" => Self::Pascal,
            "camelCase" => Self::Camel,
            "snake_case" => Self::Snake,
            "SCREAMING_SNAKE_CASE" => Self::ScreamingSnake,
            "kebab-case" => Self::Kebab,
            "SCREAMING-KEBAB-CASE" => Self::ScreamingKebab,
            _ => return Err(syn::Error::new(text.span(), "unknown case: see serde's `rename_all`")),
        }))
    }

    /// Serde's name of a field, given in snake case.
    pub(crate) fn field(self, name: &str) -> String {
        match self {
            Self::Lower | Self::Snake => name.to_owned(),
            Self::Upper | Self::ScreamingSnake => name.to_ascii_uppercase(),
            Self::Pascal => name.split('_').map(|word| first(word, char::to_ascii_uppercase)).collect(),
            Self::Camel => first(&Self::Pascal.field(name), char::to_ascii_lowercase),
            Self::Kebab => name.replace('_', "-"),
            Self::ScreamingKebab => Self::ScreamingSnake.field(name).replace('_', "-"),
        }
    }

    /// Serde's name of a variant, given in Pascal case.
    pub(crate) fn variant(self, name: &str) -> String {
        match self {
            Self::Pascal => name.to_owned(),
            Self::Lower => name.to_ascii_lowercase(),
            Self::Upper => name.to_ascii_uppercase(),
            Self::Camel => first(name, char::to_ascii_lowercase),
            Self::Snake => {
                let mut snake = String::new();
                for (at, c) in name.char_indices() {
                    if at > 0 && c.is_uppercase() {
                        snake.push('_');
                    }
                    snake.push(c.to_ascii_lowercase());
                }
                snake
            }
            Self::ScreamingSnake => Self::Snake.variant(name).to_ascii_uppercase(),
            Self::Kebab => Self::Snake.variant(name).replace('_', "-"),
            Self::ScreamingKebab => Self::ScreamingSnake.variant(name).replace('_', "-"),
        }
    }
}

fn first(word: &str, change: impl Fn(&char) -> char) -> String {
    let mut chars = word.chars();
    chars.next().iter().map(change).chain(chars).collect()
}

/// The plain name of an identifier, without `r#`.
pub(crate) fn plain(ident: &Ident) -> String {
    use syn::ext::IdentExt;
    ident.unraw().to_string()
}
