//! Keys of a map in an order that their bytes have too.
//!
//! Numbers are big-endian, signed ones with their sign turned; texts end with two zero bytes, a zero in them
//! is written as zero and 255. So no key is the beginning of another, and tuples sort by their parts. The
//! idea is FoundationDB's tuple layer.

use bytes::Bytes;
use perennial_core::id::ActorId;
use perennial_core::time::Millis;

/// What a [`Map`](super::Map) can be sorted by: texts, bytes, integers, and tuples of them. Encoded keys have at most
/// [`ITEM_KEY_BYTES_MAX`](crate::limits::ITEM_KEY_BYTES_MAX) bytes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the key of a `Map`",
    note = "keys are texts, bytes, integers and tuples of them"
)]
pub trait MapKey {
    /// Appends the key in a form whose bytes sort as keys do.
    fn encode(&self, to: &mut Vec<u8>);

    /// Takes a key off the front; `None` when there is none.
    fn decode(from: &mut &[u8]) -> Option<Self>
    where
        Self: Sized;

    /// What the type is called in the map's head; a map of another one is not read.
    fn name() -> String
    where
        Self: Sized;
}

macro_rules! unsigned {
    ($($ty:ty)*) => {$(
        impl MapKey for $ty {
            fn encode(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_be_bytes());
            }
            fn decode(from: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = from.split_first_chunk()?;
                *from = rest;
                Some(Self::from_be_bytes(*bytes))
            }
            fn name() -> String {
                stringify!($ty).to_owned()
            }
        }
    )*};
}

unsigned! { u8 u16 u32 u64 u128 }

macro_rules! signed {
    ($($ty:ty as $unsigned:ty,)*) => {$(
        impl MapKey for $ty {
            fn encode(&self, to: &mut Vec<u8>) {
                (self.cast_unsigned() ^ <$ty>::MIN.cast_unsigned()).encode(to);
            }
            fn decode(from: &mut &[u8]) -> Option<Self> {
                Some((<$unsigned>::decode(from)? ^ <$ty>::MIN.cast_unsigned()).cast_signed())
            }
            fn name() -> String {
                stringify!($ty).to_owned()
            }
        }
    )*};
}

signed! { i8 as u8, i16 as u16, i32 as u32, i64 as u64, i128 as u128, }

fn encode_bytes(bytes: &[u8], to: &mut Vec<u8>) {
    for &byte in bytes {
        to.push(byte);
        if byte == 0 {
            to.push(0xff);
        }
    }
    to.extend_from_slice(&[0, 0]);
}

fn decode_bytes(from: &mut &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        if byte == 0 {
            let (&mark, rest) = from.split_first()?;
            *from = rest;
            match mark {
                0 => return Some(bytes),
                0xff => {}
                _ => return None,
            }
        }
        bytes.push(byte);
    }
}

/// A text. `Map<String, _>` is asked with it.
impl MapKey for str {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_bytes(self.as_bytes(), to);
    }
}

impl MapKey for String {
    fn encode(&self, to: &mut Vec<u8>) {
        self.as_str().encode(to);
    }
    fn decode(from: &mut &[u8]) -> Option<Self> {
        Self::from_utf8(decode_bytes(from)?).ok()
    }
    fn name() -> String {
        "text".to_owned()
    }
}

impl MapKey for ActorId {
    fn encode(&self, to: &mut Vec<u8>) {
        self.as_str().encode(to);
    }
    fn decode(from: &mut &[u8]) -> Option<Self> {
        String::decode(from)?.parse().ok()
    }
    fn name() -> String {
        "text".to_owned()
    }
}

macro_rules! bytes {
    ($($ty:ty)*) => {$(
        impl MapKey for $ty {
            fn encode(&self, to: &mut Vec<u8>) {
                encode_bytes(self, to);
            }
            fn decode(from: &mut &[u8]) -> Option<Self> {
                decode_bytes(from).map(Self::from)
            }
            fn name() -> String {
                "bytes".to_owned()
            }
        }
    )*};
}

bytes! { Vec<u8> Bytes }

impl MapKey for bool {
    fn encode(&self, to: &mut Vec<u8>) {
        u8::from(*self).encode(to);
    }
    fn decode(from: &mut &[u8]) -> Option<Self> {
        match u8::decode(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
    fn name() -> String {
        "bool".to_owned()
    }
}

impl MapKey for Millis {
    fn encode(&self, to: &mut Vec<u8>) {
        self.0.encode(to);
    }
    fn decode(from: &mut &[u8]) -> Option<Self> {
        u64::decode(from).map(Self)
    }
    fn name() -> String {
        u64::name()
    }
}

macro_rules! tuples {
    ($(($($name:ident $part:ident)+))+) => {$(
        impl<$($name: MapKey),+> MapKey for ($($name,)+) {
            fn encode(&self, to: &mut Vec<u8>) {
                let ($($part,)+) = self;
                $($part.encode(to);)+
            }
            fn decode(from: &mut &[u8]) -> Option<Self> {
                Some(($($name::decode(from)?,)+))
            }
            fn name() -> String {
                format!("({})", [$($name::name()),+].join(" "))
            }
        }
    )+};
}

tuples! { (A a) (A a B b) (A a B b C c) (A a B b C c D d) }

/// The bytes of a key.
pub(super) fn encoded(key: &(impl MapKey + ?Sized)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    key.encode(&mut bytes);
    bytes
}

/// The key that has these bytes.
pub(super) fn decoded<K: MapKey>(mut bytes: &[u8]) -> Option<K> {
    K::decode(&mut bytes).filter(|_| bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorts<K: MapKey + Ord + Clone + std::fmt::Debug>(a: &K, b: &K) {
        let (x, y) = (encoded(a), encoded(b));
        assert_eq!(x.cmp(&y), a.cmp(b), "{a:?} {b:?}");
        assert!(a == b || !y.starts_with(&x), "{a:?} begins {b:?}");
        assert_eq!(decoded::<K>(&x).as_ref(), Some(a));
    }

    proptest! {
        #[test]
        fn bytes_sort_as_keys_do(
            a: (i32, u64, String), b: (i32, u64, String),
            x in prop::collection::vec(0u8..3, 0..5), y in prop::collection::vec(0u8..3, 0..5),
            m: i128, n: i128, p: (bool, i8), q: (bool, i8),
        ) {
            sorts(&a, &b);
            sorts(&(x.clone(), a.0), &(y.clone(), b.0));
            sorts(&(a.2.clone(), b.1), &(a.2.clone(), a.1));
            sorts(&x, &y);
            sorts(&m, &n);
            sorts(&p, &q);
        }

        #[test]
        fn keys_are_read_only_as_they_were_written(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Some(key) = decoded::<(String, u8)>(&bytes) {
                prop_assert_eq!(encoded(&key), bytes.clone());
            }
            if let Some(key) = decoded::<(Vec<u8>, bool)>(&bytes) {
                prop_assert_eq!(encoded(&key), bytes);
            }
        }
    }

    #[test]
    fn bytes_of_keys_are_frozen() {
        assert_eq!(encoded("a\0b"), b"a\0\xffb\0\0");
        assert_eq!(encoded(&-1_i16), [0x7f, 0xff]);
        assert_eq!(encoded(&(true, 258_u32)), [1, 0, 0, 1, 2]);
        assert_eq!(<(String, (u8, Bytes))>::name(), "(text (u8 bytes))");
    }
}
