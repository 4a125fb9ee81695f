//! Keys of a partition's rows.
//!
//! Every key starts with a tag; numbers are big-endian so that rows stand in the order of their numbers.
//! An actor inside a key is its length (two bytes) and its text, so that no actor's rows are a prefix
//! of another's. Keys are relative to the partition; the store puts the group in front.

use super::record::CollectionId;
use crate::id::{ActorId, LogIndex, PartitionId, RequestId, SessionId, Term};
use crate::time::Millis;

const STATE: u8 = b'S';
const KEPT_REPLY: u8 = b'K';
const KEPT_UNTIL: u8 = b'X';
const OUTBOX: u8 = b'O';
const REMINDER_DUE: u8 = b'R';
const REMINDER_NAME: u8 = b'N';
const EVENT: u8 = b'E';
const EVENTS_GONE: u8 = b'L';
const SCHEMA: u8 = b'F';
const DEAD: u8 = b'D';
const ITEM: u8 = b'I';
const DROPPED: u8 = b'G';

/// State of an actor.
#[must_use]
pub fn state(actor: &ActorId) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + actor.as_str().len());
    key.push(STATE);
    key.extend_from_slice(actor.as_str().as_bytes());
    key
}

/// All states, as a range.
#[must_use]
pub fn states() -> (Vec<u8>, Vec<u8>) {
    (vec![STATE], vec![STATE + 1])
}

/// The actor of a state's key.
#[must_use]
pub fn state_actor(key: &[u8]) -> Option<ActorId> {
    let (&STATE, text) = key.split_first()? else { return None };
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A reply kept until a stated time.
#[must_use]
pub fn kept_reply(request: RequestId) -> Vec<u8> {
    let mut key = vec![KEPT_REPLY];
    push_request(&mut key, request);
    key
}

/// Entry of a kept reply in the order of the times.
#[must_use]
pub fn kept_until(until: Millis, request: RequestId) -> Vec<u8> {
    let mut key = vec![KEPT_UNTIL];
    key.extend_from_slice(&until.0.to_be_bytes());
    push_request(&mut key, request);
    key
}

/// All kept replies whose time ends before `now`.
#[must_use]
pub fn kept_before(now: Millis) -> (Vec<u8>, Vec<u8>) {
    let mut to = vec![KEPT_UNTIL];
    to.extend_from_slice(&now.0.to_be_bytes());
    (vec![KEPT_UNTIL], to)
}

/// Reads a key of [`kept_until`].
#[must_use]
pub fn read_kept_until(key: &[u8]) -> Option<(Millis, RequestId)> {
    let (&KEPT_UNTIL, rest) = key.split_first()? else { return None };
    let (until, rest) = rest.split_first_chunk::<8>()?;
    let (session, seq) = rest.split_first_chunk::<16>()?;
    let request = RequestId {
        session: SessionId(u128::from_be_bytes(*session)),
        seq: u64::from_be_bytes(seq.try_into().ok()?),
    };
    Some((Millis(u64::from_be_bytes(*until)), request))
}

fn push_request(key: &mut Vec<u8>, request: RequestId) {
    key.extend_from_slice(&request.session.0.to_be_bytes());
    key.extend_from_slice(&request.seq.to_be_bytes());
}

/// A message on its way to another partition.
#[must_use]
pub fn outbox(to: PartitionId, seq: u64) -> Vec<u8> {
    let mut key = vec![OUTBOX];
    key.extend_from_slice(&to.0.to_be_bytes());
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

/// The messages `from..to` of one line, as a range.
#[must_use]
pub fn outbox_range(to: PartitionId, from: u64, until: u64) -> (Vec<u8>, Vec<u8>) {
    (outbox(to, from), outbox(to, until))
}

/// A reminder in the order of due times.
#[must_use]
pub fn reminder_due(due: Millis, actor: &ActorId, name: &str) -> Vec<u8> {
    let mut key = vec![REMINDER_DUE];
    key.extend_from_slice(&due.0.to_be_bytes());
    push_actor(&mut key, actor);
    key.extend_from_slice(name.as_bytes());
    key
}

/// All reminders, earliest first.
#[must_use]
pub fn reminders() -> (Vec<u8>, Vec<u8>) {
    (vec![REMINDER_DUE], vec![REMINDER_DUE + 1])
}

/// Where the reminders begin that are due after `now`.
#[must_use]
pub fn reminders_after(now: Millis) -> Vec<u8> {
    let mut key = vec![REMINDER_DUE];
    key.extend_from_slice(&now.0.saturating_add(1).to_be_bytes());
    key
}

/// Reads a key of [`reminder_due`].
#[must_use]
pub fn read_reminder_due(key: &[u8]) -> Option<(Millis, ActorId, String)> {
    let (&REMINDER_DUE, rest) = key.split_first()? else { return None };
    let (due, rest) = rest.split_first_chunk::<8>()?;
    let (actor, name) = split_actor(rest)?;
    Some((Millis(u64::from_be_bytes(*due)), actor, std::str::from_utf8(name).ok()?.to_owned()))
}

/// When the reminder of this name is due.
#[must_use]
pub fn reminder_name(actor: &ActorId, name: &str) -> Vec<u8> {
    let mut key = vec![REMINDER_NAME];
    push_actor(&mut key, actor);
    key.extend_from_slice(name.as_bytes());
    key
}

/// All reminders of an actor in the order of their names.
#[must_use]
pub fn reminder_names(actor: &ActorId) -> (Vec<u8>, Vec<u8>) {
    let from = reminder_name(actor, "");
    let mut to = from.clone();
    // An actor's text is UTF-8, so its last byte has a successor.
    if let Some(last) = to.last_mut() {
        *last += 1;
    }
    (from, to)
}

/// Reads a key of [`reminder_name`].
#[must_use]
pub fn read_reminder_name(key: &[u8]) -> Option<(ActorId, String)> {
    let (&REMINDER_NAME, rest) = key.split_first()? else { return None };
    let (actor, name) = split_actor(rest)?;
    Some((actor, std::str::from_utf8(name).ok()?.to_owned()))
}

/// An event.
#[must_use]
pub fn event(actor: &ActorId, index: LogIndex, n: u32) -> Vec<u8> {
    let mut key = events_prefix(actor);
    key.extend_from_slice(&index.0.to_be_bytes());
    key.extend_from_slice(&n.to_be_bytes());
    key
}

/// An actor's events after `(index, n)` up to and including log index `last`.
#[must_use]
pub fn events_after(actor: &ActorId, after: Option<(u64, u32)>, last: LogIndex) -> (Vec<u8>, Vec<u8>) {
    let from = match after {
        None => events_prefix(actor),
        Some((index, n)) => {
            let mut from = event(actor, LogIndex(index), n);
            from.push(0);
            from
        }
    };
    (from, event(actor, LogIndex(last.0.saturating_add(1)), 0))
}

/// An actor's events up to and including `(index, n)`, as a range.
#[must_use]
pub fn events_upto(actor: &ActorId, index: LogIndex, n: u32) -> (Vec<u8>, Vec<u8>) {
    let mut to = event(actor, index, n);
    to.push(0);
    (events_prefix(actor), to)
}

/// Reads index and number from a key of [`event`].
#[must_use]
pub fn read_event(key: &[u8]) -> Option<(u64, u32)> {
    let (rest, n) = key.split_last_chunk::<4>()?;
    let (_, index) = rest.split_last_chunk::<8>()?;
    Some((u64::from_be_bytes(*index), u32::from_be_bytes(*n)))
}

/// The events of all actors that stand behind those of `actor`, as a range.
#[must_use]
pub fn events_behind(actor: Option<&ActorId>) -> (Vec<u8>, Vec<u8>) {
    let from = match actor {
        None => vec![EVENT],
        // No event has an index beyond all others.
        Some(actor) => event(actor, LogIndex(u64::MAX), u32::MAX),
    };
    (from, vec![EVENT + 1])
}

/// The actor of an event's key.
#[must_use]
pub fn event_actor(key: &[u8]) -> Option<ActorId> {
    let (&EVENT, rest) = key.split_first()? else { return None };
    split_actor(rest).map(|(actor, _)| actor)
}

/// What the row of an event holds: its record time and its bytes.
#[must_use]
pub fn event_value(time: Millis, event: &[u8]) -> Vec<u8> {
    [&time.0.to_be_bytes()[..], event].concat()
}

/// Reads what [`event_value`] made.
#[must_use]
pub fn read_event_value(value: &[u8]) -> Option<(Millis, &[u8])> {
    let (time, event) = value.split_first_chunk::<8>()?;
    Some((Millis(u64::from_be_bytes(*time)), event))
}

/// Up to which event an actor's are no longer kept.
#[must_use]
pub fn events_gone(actor: &ActorId) -> Vec<u8> {
    let mut key = vec![EVENTS_GONE];
    push_actor(&mut key, actor);
    key
}

/// What the row of [`events_gone`] holds.
#[must_use]
pub fn position(index: LogIndex, n: u32) -> Vec<u8> {
    [&index.0.to_be_bytes()[..], &n.to_be_bytes()].concat()
}

/// Reads what [`position`] made.
#[must_use]
pub fn read_position(value: &[u8]) -> Option<(u64, u32)> {
    let (index, n) = value.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*index), u32::from_be_bytes(n.try_into().ok()?)))
}

fn events_prefix(actor: &ActorId) -> Vec<u8> {
    let mut key = vec![EVENT];
    push_actor(&mut key, actor);
    key
}

/// The schema of a fingerprint.
#[must_use]
pub fn schema(fingerprint: u64) -> Vec<u8> {
    let mut key = vec![SCHEMA];
    key.extend_from_slice(&fingerprint.to_be_bytes());
    key
}

/// A dead letter.
#[must_use]
pub fn dead(number: u64) -> Vec<u8> {
    let mut key = vec![DEAD];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The dead letters above a number, as a range.
#[must_use]
pub fn dead_after(number: u64) -> (Vec<u8>, Vec<u8>) {
    (dead(number.saturating_add(1)), vec![DEAD + 1])
}

/// Reads a key of [`dead`].
#[must_use]
pub fn read_dead(key: &[u8]) -> Option<u64> {
    let (&DEAD, number) = key.split_first()? else { return None };
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

/// An item of a collection.
#[must_use]
pub fn item(actor: &ActorId, collection: CollectionId, key: &[u8]) -> Vec<u8> {
    collection_key(ITEM, actor, collection, key)
}

/// All items of a collection, as a range; their own keys stand behind what its start has.
#[must_use]
pub fn items(actor: &ActorId, collection: CollectionId) -> (Vec<u8>, Vec<u8>) {
    let from = item(actor, collection, &[]);
    let to = next_prefix(&from);
    (from, to)
}

/// Where an actor's items begin of collections behind this one, or of all; up to the range's end.
#[must_use]
pub fn items_after(actor: &ActorId, collection: Option<CollectionId>) -> (Vec<u8>, Vec<u8>) {
    let mut all = vec![ITEM];
    push_actor(&mut all, actor);
    let to = next_prefix(&all);
    (collection.map_or(all, |collection| items(actor, collection).1), to)
}

/// The collection of a key of [`item`], and the item's own key.
#[must_use]
pub fn read_item(key: &[u8]) -> Option<(ActorId, CollectionId, &[u8])> {
    read_collection_key(ITEM, key)
}

/// Says that the items of a collection below this one are to be forgotten.
#[must_use]
pub fn dropped(actor: &ActorId, collection: CollectionId, below: &[u8]) -> Vec<u8> {
    collection_key(DROPPED, actor, collection, below)
}

/// All rows of [`dropped`], as a range.
#[must_use]
pub fn all_dropped() -> (Vec<u8>, Vec<u8>) {
    (vec![DROPPED], vec![DROPPED + 1])
}

/// Reads a key of [`dropped`].
#[must_use]
pub fn read_dropped(key: &[u8]) -> Option<(ActorId, CollectionId, &[u8])> {
    read_collection_key(DROPPED, key)
}

fn collection_key(tag: u8, actor: &ActorId, collection: CollectionId, key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(12 + actor.as_str().len() + key.len());
    row.push(tag);
    push_actor(&mut row, actor);
    push_number(&mut row, collection.term.0);
    push_number(&mut row, collection.number);
    row.extend_from_slice(key);
    row
}

fn read_collection_key(tag: u8, key: &[u8]) -> Option<(ActorId, CollectionId, &[u8])> {
    let (found, rest) = key.split_first()?;
    let (actor, rest) = split_actor(rest).filter(|_| *found == tag)?;
    let (term, rest) = split_number(rest)?;
    let (number, rest) = split_number(rest)?;
    Some((actor, CollectionId { term: Term(term), number }, rest))
}

/// A number in as few bytes as it needs, behind their count: in order, and none is a prefix of another.
fn push_number(key: &mut Vec<u8>, number: u64) {
    let bytes = number.to_be_bytes();
    let unused = number.leading_zeros() as usize / 8;
    key.push((bytes.len() - unused) as u8);
    key.extend_from_slice(&bytes[unused..]);
}

fn split_number(key: &[u8]) -> Option<(u64, &[u8])> {
    let (&len, rest) = key.split_first()?;
    let (digits, rest) = rest.split_at_checked(usize::from(len)).filter(|_| len <= 8)?;
    if digits.first() == Some(&0) {
        return None;
    }
    Some((digits.iter().fold(0, |number, &digit| number << 8 | u64::from(digit)), rest))
}

/// The first key behind all that begin with this one. Not empty: the tag is below 255.
fn next_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut next = prefix.to_vec();
    while let Some(last) = next.pop() {
        if last < u8::MAX {
            next.push(last + 1);
            break;
        }
    }
    next
}

fn push_actor(key: &mut Vec<u8>, actor: &ActorId) {
    let text = actor.as_str().as_bytes();
    key.extend_from_slice(&(text.len() as u16).to_be_bytes());
    key.extend_from_slice(text);
}

fn split_actor(bytes: &[u8]) -> Option<(ActorId, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (actor, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some((std::str::from_utf8(actor).ok()?.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_what_was_put_in() {
        let actor: ActorId = "Cart/a/b".parse().unwrap();
        assert_eq!(state_actor(&state(&actor)), Some(actor.clone()));
        let request = RequestId { session: SessionId(7), seq: 9 };
        assert_eq!(read_kept_until(&kept_until(Millis(5), request)), Some((Millis(5), request)));
        assert_eq!(
            read_reminder_due(&reminder_due(Millis(5), &actor, "tick")),
            Some((Millis(5), actor.clone(), "tick".to_owned()))
        );
        assert_eq!(
            read_reminder_name(&reminder_name(&actor, "tick")),
            Some((actor.clone(), "tick".to_owned()))
        );
        assert_eq!(read_event(&event(&actor, LogIndex(17), 3)), Some((17, 3)));
        assert_eq!(event_actor(&event(&actor, LogIndex(17), 3)), Some(actor));
        assert_eq!(read_event_value(&event_value(Millis(5), b"e")), Some((Millis(5), &b"e"[..])));
        assert_eq!(read_position(&position(LogIndex(17), 3)), Some((17, 3)));
    }

    #[test]
    fn bytes_of_keys_are_frozen() {
        let actor: ActorId = "C/a".parse().unwrap();
        let request = RequestId { session: SessionId(7), seq: 9 };
        let long = |number: u64| number.to_be_bytes();
        let asked = [7_u128.to_be_bytes().as_slice(), &long(9)].concat();
        let named = b"\0\x03C/a";
        assert_eq!(state(&actor), b"SC/a");
        assert_eq!(kept_reply(request), [b"K", &asked[..]].concat());
        assert_eq!(kept_until(Millis(5), request), [b"X", &long(5)[..], &asked].concat());
        assert_eq!(outbox(PartitionId(2), 3), [b"O", &[0, 0, 0, 2][..], &long(3)].concat());
        assert_eq!(reminder_due(Millis(5), &actor, "tick"), [b"R", &long(5)[..], named, b"tick"].concat());
        assert_eq!(reminder_name(&actor, "tick"), [b"N", &named[..], b"tick"].concat());
        assert_eq!(event(&actor, LogIndex(4), 1), [b"E", &named[..], &long(4), &[0, 0, 0, 1]].concat());
        assert_eq!(event_value(Millis(5), b"e"), [&long(5)[..], b"e"].concat());
        assert_eq!(events_gone(&actor), [b"L", &named[..]].concat());
        assert_eq!(position(LogIndex(4), 1), [&long(4)[..], &[0, 0, 0, 1]].concat());
        assert_eq!(schema(6), [b"F", &long(6)[..]].concat());
        let collection = CollectionId { term: Term(300), number: 0 };
        assert_eq!(item(&actor, collection, b"k"), [b"I", &named[..], &[2, 1, 44, 0], b"k"].concat());
        assert_eq!(dropped(&actor, collection, b"k"), [b"G", &named[..], &[2, 1, 44, 0], b"k"].concat());
    }

    #[test]
    fn ranges_hold_their_rows_and_no_others() {
        let actor: ActorId = "C/a".parse().unwrap();
        let request = RequestId { session: SessionId(u128::MAX), seq: u64::MAX };
        let within = |(from, to): (Vec<u8>, Vec<u8>), key: Vec<u8>| from <= key && key < to;
        let tags = [
            STATE,
            KEPT_REPLY,
            KEPT_UNTIL,
            OUTBOX,
            REMINDER_DUE,
            REMINDER_NAME,
            EVENT,
            EVENTS_GONE,
            SCHEMA,
            ITEM,
            DROPPED,
        ];
        for tag in tags {
            assert_eq!(within(events_behind(None), vec![tag, 0xff]), tag == EVENT);
            assert_eq!(within(states(), vec![tag, 0xff]), tag == STATE);
            assert_eq!(within(reminders(), vec![tag, 0xff]), tag == REMINDER_DUE);
            assert_eq!(within(all_dropped(), vec![tag, 0xff]), tag == DROPPED);
            assert_eq!(within(kept_before(Millis(9)), vec![tag, 0]), tag == KEPT_UNTIL);
        }
        assert!(within(kept_before(Millis(9)), kept_until(Millis(8), request)));
        assert!(!within(
            kept_before(Millis(9)),
            kept_until(Millis(9), RequestId { session: SessionId(0), seq: 0 })
        ));
        let line = || outbox_range(PartitionId(2), 4, 6);
        for (to, seq, inside) in [(2, 3, false), (2, 4, true), (2, 5, true), (2, 6, false), (3, 5, false)] {
            assert_eq!(within(line(), outbox(PartitionId(to), seq)), inside);
        }
        let named = || reminder_names(&actor);
        assert!(
            within(named(), reminder_name(&actor, ""))
                && within(named(), reminder_name(&actor, "\u{10ffff}"))
        );
        for other in ["C/aa", "C/b", "B/a", "C/A"] {
            assert!(!within(named(), reminder_name(&other.parse().unwrap(), "tick")), "{other}");
        }
        let after = reminders_after(Millis(5));
        assert!(reminder_due(Millis(5), &actor, "z") < after && after < reminder_due(Millis(6), &actor, ""));
        assert!(reminder_due(Millis(7), &actor, "") > reminders_after(Millis(5)));
    }

    #[test]
    fn items_stand_with_their_collection_and_in_order() {
        let actors: [ActorId; 2] = ["C/a".parse().unwrap(), "C/a\u{7f}".parse().unwrap()];
        let numbers = [0, 1, 255, 256, 65_535, 1 << 40, u64::MAX];
        let mut all = Vec::new();
        for actor in &actors {
            for (term, number) in numbers.iter().flat_map(|term| numbers.map(|number| (*term, number))) {
                let collection = CollectionId { term: Term(term), number };
                for key in [&b""[..], b"\0", b"a", b"\xff\xff"] {
                    let row = item(actor, collection, key);
                    assert_eq!(read_item(&row), Some((actor.clone(), collection, key)));
                    let (from, to) = items(actor, collection);
                    assert!(from <= row && row < to);
                    assert!(row < items_after(actor, Some(collection)).0);
                    all.push((row, (actor, collection)));
                }
            }
        }
        assert!(all.is_sorted_by(|a, b| a.0 < b.0));
        for (actor, collection) in all.iter().map(|(_, of)| *of) {
            let (from, to) = items(actor, collection);
            let within = all.iter().filter(|(row, _)| from <= *row && *row < to);
            assert!(
                within.clone().count() == 4 && within.into_iter().all(|(_, of)| *of == (actor, collection))
            );
        }
        let (from, to) = items_after(&actors[0], None);
        assert_eq!(all.iter().filter(|(row, _)| from <= *row && *row < to).count(), all.len() / 2);
        let collection = CollectionId { term: Term(3), number: 4 };
        let row = dropped(&actors[0], collection, b"k");
        assert_eq!(read_dropped(&row), Some((actors[0].clone(), collection, &b"k"[..])));
        assert_eq!((read_item(&row), read_item(&row[..5]), read_dropped(b"")), (None, None, None));
    }

    #[test]
    fn other_keys_are_not_misread() {
        let actor: ActorId = "C/a".parse().unwrap();
        let request = RequestId { session: SessionId(7), seq: 9 };
        let state = state(&actor);
        let until = kept_until(Millis(5), request);
        let due = reminder_due(Millis(5), &actor, "tick");
        assert_eq!((state_actor(&due), state_actor(&until), state_actor(b"")), (None, None, None));
        assert_eq!((read_kept_until(&state), read_kept_until(&until[..until.len() - 1])), (None, None));
        assert_eq!((read_reminder_due(&state), read_reminder_due(&due[..12])), (None, None));
        assert_eq!(read_event(b"E"), None);
        assert_eq!((event_actor(&due), event_actor(b"E\0\x09C/a")), (None, None));
        assert_eq!((read_event_value(b"1234567"), read_position(b"12345678123")), (None, None));
    }

    #[test]
    fn an_actor_sees_only_its_own_events() {
        let (short, long): (ActorId, ActorId) = ("Room/a".parse().unwrap(), "Room/ab".parse().unwrap());
        let (from, to) = events_after(&short, None, LogIndex(u64::MAX - 1));
        let own = event(&short, LogIndex(1), 0);
        let other = event(&long, LogIndex(1), 0);
        assert!(from <= own && own < to);
        assert!(!(from <= other && other < to));
    }

    #[test]
    fn events_up_to_one_and_behind_an_actors_are_told_apart() {
        let (short, long): (ActorId, ActorId) = ("Room/a".parse().unwrap(), "Room/ab".parse().unwrap());
        let within = |(from, to): (Vec<u8>, Vec<u8>), key: Vec<u8>| from <= key && key < to;
        for (index, n, inside) in [(0, 0, true), (4, 1, true), (4, 2, false), (5, 0, false)] {
            assert_eq!(
                within(events_upto(&short, LogIndex(4), 1), event(&short, LogIndex(index), n)),
                inside
            );
        }
        assert!(!within(events_behind(Some(&short)), event(&short, LogIndex(9), 3)));
        assert!(within(events_behind(Some(&short)), event(&long, LogIndex(0), 0)));
    }

    #[test]
    fn events_after_one_leave_it_out() {
        let actor: ActorId = "Room/a".parse().unwrap();
        let (from, to) = events_after(&actor, Some((4, 1)), LogIndex(9));
        assert!(event(&actor, LogIndex(4), 1) < from);
        assert!(event(&actor, LogIndex(4), 2) >= from && event(&actor, LogIndex(9), 7) < to);
        assert!(event(&actor, LogIndex(10), 0) >= to);
    }
}
