//! A stream of events is the committed ones, in order, each once, from where it began on: no gap and no
//! double over all failovers, unless it was told that what comes next is no longer kept (Perennial's authoring
//! rules, 6; the log as a stream that consumers resume by position is Kafka's, Kreps, Narkhede and Rao, NetDB
//! 2011).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use perennial::EventId;
use perennial::core::partition::record::Record;

use super::super::follow::Stretch;
use super::{Invariant, Seen};

/// What was published, by actor.
#[derive(Debug, Default)]
pub struct Published {
    /// Events and their numbers, in the order of the log.
    pub events: BTreeMap<String, Vec<(EventId, u64)>>,
    /// Up to where they are no longer kept.
    pub gone: BTreeMap<String, EventId>,
}

/// Takes note of what is published.
pub struct Publishing(pub Arc<Mutex<Published>>);

impl Invariant for Publishing {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Some(batch) = seen.batch else { return Ok(()) };
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for record in &batch.records {
            match record {
                Record::Turn(turn) => {
                    for event in &turn.events {
                        let id = EventId { index: seen.index.0, n: count };
                        count += 1;
                        if let Ok(number) = postcard::from_bytes(event) {
                            published.events.entry(turn.actor.to_string()).or_default().push((id, number));
                        }
                    }
                }
                Record::EventsTrimmed { actor, index, n } => {
                    let upto = EventId { index: index.0, n: *n };
                    let before = published.gone.insert(actor.to_string(), upto);
                    if before.is_some_and(|before| before > upto) {
                        return Err(format!("{actor}: events were gone up to {before:?}, now up to {upto}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Compares every stream with what was published.
pub fn streams_have_no_gap(streams: &[Stretch], published: &Published) -> Result<(), String> {
    for stream in streams {
        let Stretch { actor, after, events, gone_after } = stream;
        let all = published.events.get(actor).map(Vec::as_slice).unwrap_or_default();
        if let Some(after) = gone_after
            && published.gone.get(actor).is_none_or(|gone| gone <= after)
        {
            return Err(format!("{actor}: all after {after} is kept, but a follower was told otherwise"));
        }
        let Some((first, _)) = events.first() else { continue };
        let begin = match after {
            Some(after) => all.partition_point(|(id, _)| id <= after),
            None => all.partition_point(|(id, _)| id < first),
        };
        let expected = all.get(begin..).unwrap_or_default();
        if expected.get(..events.len()) != Some(&events[..]) {
            let at = events.iter().zip(expected).take_while(|(got, is)| got == is).count();
            return Err(format!(
                "{actor}: a stream from {after:?} gave {:?} as event {at}, {:?} was published",
                events.get(at),
                expected.get(at)
            ));
        }
    }
    Ok(())
}

/// The same by the numbers alone, which each actor counts up: for where nobody sees the log.
pub fn numbers_have_no_gap(streams: &[Stretch]) -> Result<(), String> {
    let mut numbers = BTreeMap::new();
    let mut ids = BTreeMap::new();
    for Stretch { actor, events, .. } in streams {
        for (id, number) in events {
            let (as_number, as_id) =
                (numbers.entry((actor, *id)).or_insert(*number), ids.entry((actor, *number)).or_insert(*id));
            if (&*as_number, &*as_id) != (number, id) {
                return Err(format!("{actor}: event {id} is {number} and {as_number}, or {as_id} is too"));
            }
        }
    }
    for Stretch { actor, after, events, .. } in streams {
        let before = after.and_then(|after| Some((after, *numbers.get(&(actor, after))?)));
        let all: Vec<_> = before.into_iter().chain(events.iter().copied()).collect();
        if let Some(two) = all.windows(2).find(|two| two[1].0 <= two[0].0 || two[1].1 != two[0].1 + 1) {
            return Err(format!("{actor}: a stream gave {:?} behind {:?}", two[1], two[0]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_doubles_and_false_alarms_are_found() {
        let id = |n| EventId { index: n, n: 0 };
        let numbers = |of: &[u64]| of.iter().map(|&n| (id(n), n)).collect::<Vec<_>>();
        let actor = "Feed/f".to_owned();
        let published = Published {
            events: BTreeMap::from([(actor.clone(), numbers(&[1, 2, 3, 4]))]),
            gone: BTreeMap::from([(actor.clone(), id(1))]),
        };
        let check = |after: Option<u64>, of: &[u64], gone: Option<u64>| {
            let actor = actor.clone();
            let stretch =
                Stretch { actor, after: after.map(id), events: numbers(of), gone_after: gone.map(id) };
            let kept = streams_have_no_gap(std::slice::from_ref(&stretch), &published).is_ok();
            let whole =
                Stretch { after: None, gone_after: None, events: numbers(&[1, 2, 3, 4]), ..stretch.clone() };
            // Whether something is gone, only the log tells.
            assert_eq!(kept || gone.is_some(), numbers_have_no_gap(&[whole, stretch]).is_ok());
            kept
        };
        assert!(
            check(None, &[2, 3], None) && check(Some(1), &[2, 3, 4], None) && check(Some(0), &[], Some(0))
        );
        assert!(!check(None, &[2, 4], None), "a gap");
        assert!(!check(Some(1), &[3], None), "a gap at the begin");
        assert!(!check(None, &[2, 2], None) && !check(Some(2), &[2], None), "a double");
        assert!(!check(None, &[3, 2], None), "another order");
        assert!(!check(Some(2), &[], Some(2)), "nothing of it is gone");
    }
}
