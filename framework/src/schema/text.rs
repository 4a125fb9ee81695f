//! Types as text that people read and tools compare, and back.
//!
//! Owns the words: `u32`, `text`, `list<T>`, `map<K, V>`, `option<T>`, `(A, B)`, names of types, and the four
//! forms of a shape. Line ends mean nothing to the reader.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

use super::{DEPTH_MAX, Field, Shape, Type, Types, Variant};

/// Why a text could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}, found {found}")]
pub(crate) struct TextError {
    pub(crate) line: usize,
    pub(crate) expected: String,
    pub(crate) found: String,
}

/// A name, in quotes unless it is a plain word.
pub(crate) fn name(name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(is_word);
    if plain { name.to_owned() } else { format!("{name:?}") }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '#')
}

/// A type in words.
pub(crate) fn ty(of: &Type) -> String {
    match of {
        Type::Unit => "()".into(),
        Type::Bool => "bool".into(),
        Type::Int(bits) => format!("i{bits}"),
        Type::Uint(bits) => format!("u{bits}"),
        Type::F32 => "f32".into(),
        Type::F64 => "f64".into(),
        Type::Char => "char".into(),
        Type::String => "text".into(),
        Type::Bytes => "bytes".into(),
        Type::Option(inner) => format!("option<{}>", ty(inner)),
        Type::Seq(inner) => format!("list<{}>", ty(inner)),
        Type::Map(key, value) => format!("map<{}, {}>", ty(key), ty(value)),
        Type::Tuple(types) => format!("tuple<{}>", list(types)),
        Type::Named(named) if scalar(named).is_some() => format!("{named:?}"),
        Type::Named(named) => name(named),
    }
}

fn list(types: &[Type]) -> String {
    types.iter().map(ty).collect::<Vec<_>>().join(", ")
}

fn scalar(word: &str) -> Option<Type> {
    let bits = |text: &str| text.parse::<u8>().ok().filter(|bits| matches!(bits, 8 | 16 | 32 | 64 | 128));
    Some(match word {
        "bool" => Type::Bool,
        "f32" => Type::F32,
        "f64" => Type::F64,
        "char" => Type::Char,
        "text" => Type::String,
        "bytes" => Type::Bytes,
        "option" | "list" | "map" | "tuple" => Type::Unit,
        _ => match (word.strip_prefix('i').and_then(bits), word.strip_prefix('u').and_then(bits)) {
            (Some(bits), _) => Type::Int(bits),
            (_, Some(bits)) => Type::Uint(bits),
            _ => return None,
        },
    })
}

/// What stands behind the name of a type or variant: nothing, ` = T`, `(A, B)` or ` { a: A }`.
pub(crate) fn shape(of: &Shape) -> String {
    match of {
        Shape::Unit => String::new(),
        Shape::Newtype(inner) => format!(" = {}", ty(inner)),
        Shape::Tuple(types) => format!("({})", list(types)),
        Shape::Struct(fields) => {
            let fields = fields.iter().map(|field| format!("{}: {}", name(&field.name), ty(&field.ty)));
            format!(" {{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        Shape::Enum(_) => " enum".into(),
    }
}

/// All named types, a line for each field and variant.
pub(crate) fn types(of: &Types, indent: &str) -> String {
    let mut text = String::new();
    for (named, of) in &of.by_name {
        let mut put = |line: String| writeln!(text, "{indent}{line}").expect("a text takes what is written");
        match of {
            Shape::Struct(fields) => {
                put(format!("type {} {{", name(named)));
                fields.iter().for_each(|field| put(format!("  {}: {},", name(&field.name), ty(&field.ty))));
                put("}".into());
            }
            Shape::Enum(variants) => {
                put(format!("enum {} {{", name(named)));
                variants.iter().for_each(|v| put(format!("  {}{},", name(&v.name), shape(&v.shape))));
                put("}".into());
            }
            of => put(format!("type {}{}", name(named), shape(of))),
        }
    }
    text
}

/// Reads what the functions above write.
pub(crate) struct Parser<'t> {
    rest: Peekable<Chars<'t>>,
    line: usize,
    token: Token,
    depth: usize,
}

/// A word, a text in quotes, a sign, or the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    Word(String),
    Quoted(String),
    Sign(char),
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "{word:?}"),
            Self::Quoted(text) => write!(f, "{text:?} in quotes"),
            Self::Sign(sign) => write!(f, "{sign:?}"),
            Self::End => write!(f, "the end"),
        }
    }
}

impl<'t> Parser<'t> {
    pub(crate) fn new(text: &'t str) -> Result<Self, TextError> {
        let mut parser = Self { rest: text.chars().peekable(), line: 1, token: Token::End, depth: 0 };
        parser.advance()?;
        Ok(parser)
    }

    /// The next token, not taken yet.
    pub(crate) fn peek(&self) -> &Token {
        &self.token
    }

    pub(crate) fn error<T>(&self, expected: &str) -> Result<T, TextError> {
        Err(TextError { line: self.line, expected: expected.to_owned(), found: self.token.to_string() })
    }

    /// Takes the next token.
    pub(crate) fn advance(&mut self) -> Result<Token, TextError> {
        let next = loop {
            match self.rest.next() {
                None => break Token::End,
                Some('\n') => self.line += 1,
                Some('#') => while self.rest.next_if(|c| *c != '\n').is_some() {},
                Some(c) if c.is_whitespace() => {}
                Some('"') => break Token::Quoted(self.quoted()?),
                Some(c) if is_word(c) => {
                    let mut word = String::from(c);
                    while let Some(c) = self.rest.next_if(|c| is_word(*c)) {
                        word.push(c);
                    }
                    break Token::Word(word);
                }
                Some(c) => break Token::Sign(c),
            }
        };
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn quoted(&mut self) -> Result<String, TextError> {
        let mut json = String::from('"');
        loop {
            match self.rest.next() {
                None | Some('\n') => return self.error("the end of a text in quotes"),
                Some('\\') => json.extend(std::iter::once('\\').chain(self.rest.next())),
                Some('"') => break,
                Some(c) => json.push(c),
            }
        }
        json.push('"');
        serde_json::from_str(&json).or_else(|_| self.error("a text in quotes"))
    }

    /// Takes a sign if it is the next token.
    pub(crate) fn sign(&mut self, sign: char) -> Result<bool, TextError> {
        let found = self.token == Token::Sign(sign);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    /// Takes a sign that must be there.
    pub(crate) fn expect(&mut self, sign: char) -> Result<(), TextError> {
        if self.sign(sign)? { Ok(()) } else { self.error(&format!("{sign:?}")) }
    }

    /// Takes a name.
    pub(crate) fn name(&mut self) -> Result<String, TextError> {
        match &self.token {
            Token::Word(_) | Token::Quoted(_) => match self.advance()? {
                Token::Word(name) | Token::Quoted(name) => Ok(name),
                Token::Sign(_) | Token::End => unreachable!("it was looked at"),
            },
            _ => self.error("a name"),
        }
    }

    /// Takes items up to a closing sign.
    pub(crate) fn until<T>(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Result<T, TextError>,
    ) -> Result<Vec<T>, TextError> {
        let mut items = Vec::new();
        while !self.sign(close)? {
            items.push(item(self)?);
            if !self.sign(',')? {
                self.expect(close)?;
                break;
            }
        }
        Ok(items)
    }

    /// Takes a type.
    pub(crate) fn ty(&mut self) -> Result<Type, TextError> {
        if self.depth == DEPTH_MAX {
            return self.error("fewer types within each other");
        }
        self.depth += 1;
        let ty = self.flat_ty();
        self.depth -= 1;
        ty
    }

    fn flat_ty(&mut self) -> Result<Type, TextError> {
        if self.sign('(')? {
            self.expect(')')?;
            return Ok(Type::Unit);
        }
        let quoted = matches!(self.token, Token::Quoted(_));
        let word = self.name()?;
        if quoted {
            return Ok(Type::Named(word));
        }
        match (&*word, scalar(&word)) {
            ("option" | "list" | "map" | "tuple", _) => {
                self.expect('<')?;
                let types = self.until('>', Self::ty)?;
                match (&*word, <[Type; 1]>::try_from(types)) {
                    ("option", Ok([inner])) => Ok(Type::Option(Box::new(inner))),
                    ("list", Ok([inner])) => Ok(Type::Seq(Box::new(inner))),
                    ("tuple", types) => Ok(Type::Tuple(types.map_or_else(|types| types, Vec::from))),
                    ("map", Err(types)) => match <[Type; 2]>::try_from(types) {
                        Ok([key, value]) => Ok(Type::Map(Box::new(key), Box::new(value))),
                        Err(_) => self.error("two types before it"),
                    },
                    _ => self.error("another number of types before it"),
                }
            }
            (_, Some(scalar)) => Ok(scalar),
            _ => Ok(Type::Named(word)),
        }
    }

    fn field(&mut self) -> Result<Field, TextError> {
        let name = self.name()?;
        self.expect(':')?;
        Ok(Field { name, ty: self.ty()? })
    }

    /// Takes what stands behind the name of a type or variant.
    pub(crate) fn shape(&mut self) -> Result<Shape, TextError> {
        Ok(if self.sign('=')? {
            Shape::Newtype(self.ty()?)
        } else if self.sign('(')? {
            Shape::Tuple(self.until(')', Self::ty)?)
        } else if self.sign('{')? {
            Shape::Struct(self.until('}', Self::field)?)
        } else {
            Shape::Unit
        })
    }

    /// Takes what stands behind the word `enum`.
    pub(crate) fn variants(&mut self) -> Result<Shape, TextError> {
        self.expect('{')?;
        let variant = |parser: &mut Self| Ok(Variant { name: parser.name()?, shape: parser.shape()? });
        Ok(Shape::Enum(self.until('}', variant)?))
    }
}
