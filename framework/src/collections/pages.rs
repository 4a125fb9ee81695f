//! Going through a collection: items are read a page at a time, as they are asked for.

use std::collections::VecDeque;
use std::marker::PhantomData;

use bytes::Bytes;
use perennial_core::partition::record::CollectionId;

use super::key::{self, MapKey};
use super::stored;
use super::{Handle, Place};
use crate::data::Data;

/// Items read at first, when nobody says how many there are.
const PAGE_ITEMS_MIN: usize = 16;
/// Items read at a time later on.
const PAGE_ITEMS_MAX: usize = 256;

/// Stored items from a key on.
pub(super) struct Pages {
    handle: Handle,
    id: Option<CollectionId>,
    from: Vec<u8>,
    to: Option<Vec<u8>>,
    page: usize,
    read: VecDeque<(Bytes, Bytes)>,
}

impl Pages {
    /// Those from a key to before another, or the end; how many, if that is known.
    pub(super) fn new(place: &Place, from: Vec<u8>, to: Option<Vec<u8>>, count: Option<u64>) -> Self {
        let handle = place.handle.clone();
        let page = count.map_or(PAGE_ITEMS_MIN, |count| count.clamp(1, PAGE_ITEMS_MAX as u64) as usize);
        Self { handle, id: place.id, from, to, page, read: VecDeque::new() }
    }

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        if self.read.is_empty()
            && let Some(id) = self.id
        {
            self.read = self.handle.scan(id, &self.from, self.to.as_deref(), self.page).into();
            match self.read.back() {
                Some((last, _)) if self.read.len() == self.page => {
                    self.from = [last, &[0][..]].concat();
                    self.page = PAGE_ITEMS_MAX;
                }
                _ => self.id = None,
            }
        }
        self.read.pop_front()
    }
}

/// Items of a [`Log`](super::Log) with their numbers, in order.
pub struct LogRange<'a, T> {
    pub(super) pages: Pages,
    pub(super) log: PhantomData<&'a T>,
}

impl<T: Data> Iterator for LogRange<'_, T> {
    type Item = (u64, T);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.pages.next()?;
        let handle = &self.pages.handle;
        let index = key::decoded(&key).unwrap_or_else(|| handle.unreadable("its number is damaged"));
        Some((index, stored::decode(handle, &value)))
    }
}

/// Items of a [`Map`](super::Map) with their keys, in the order of the keys.
pub struct MapRange<'a, K, V> {
    pub(super) pages: Pages,
    pub(super) map: PhantomData<&'a (K, V)>,
}

impl<K: MapKey, V: Data> Iterator for MapRange<'_, K, V> {
    type Item = (K, V);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.pages.next()?;
        let handle = &self.pages.handle;
        let key = key::decoded(&key).unwrap_or_else(|| handle.unreadable("its key is damaged"));
        Some((key, stored::decode(handle, &value)))
    }
}

impl<T> std::fmt::Debug for LogRange<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogRange").finish_non_exhaustive()
    }
}

impl<K, V> std::fmt::Debug for MapRange<'_, K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapRange").finish_non_exhaustive()
    }
}
