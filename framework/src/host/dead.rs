//! Dead letters: where messages and reminders end that cannot be applied.
//!
//! Owns the words for the reason, and what operators ask of the letters kept here. The record that uses a
//! message up makes its letter, the one that takes a letter off the list sends its message again, so both are
//! all or nothing. Never decides whether something is tried again.

use bytes::Bytes;
use perennial_core::id::{ActorId, RecordSeq};
use perennial_core::partition::dead::{DeadTaken, WHY_BYTES_MAX};
use perennial_core::partition::record::{Cause, Message, Record};
use perennial_core::partition::{DeadLetter, KeptLetter, Origin, OutboxItem, rows};

use super::owed::Owed;
use super::turns::{Host, Work, handler, rows_failed};
use super::{HostCall, HostCounters, ReplyTo};
use crate::actor::{Answer, Format};
use crate::ctx::Effects;
use crate::dead::{DeadAsk, DeadEntry, DeadFilter, DeadId, DeadPage, PAGE_LETTERS_MAX, SHOWN_ARGS_BYTES_MAX};
use crate::error::Fault;
use crate::schema::{Schema, Type, Types};

impl Host {
    /// Keeps a message or reminder that cannot be applied as a dead letter, with the reason.
    pub(super) fn bury(&mut self, actor: &ActorId, work: Work, answer: &Answer) {
        let (code, why) = reason(answer);
        let mut owed = Owed::nothing(RecordSeq(0));
        let (from, origin, message, tries) = match work {
            Work::Call(..) => unreachable!("a call is answered"),
            Work::Timer { .. } => unreachable!("a timer is not kept"),
            Work::Message { from, seq, item, tries } => {
                owed.message = Some((from, seq));
                (item.from, Origin::Message { from, seq }, item.message, tries)
            }
            Work::Reminder { name, due, row, tries } => {
                let next = self.next_of(actor, &name, due, &row, &mut owed);
                self.fired += 1;
                owed.reminder = Some((due, actor.clone(), name.clone()));
                (actor.clone(), Origin::Reminder { name, due, next }, row.message, tries)
            }
        };
        tracing::warn!(%actor, %from, method = message.method, code, why, "cannot be applied; it is a dead letter now");
        self.shared.counters.dead.count(code);
        let letter = DeadLetter { from, origin, message, code: code.to_owned(), why, tries: tries.count };
        let lost = self.spec.dead().lost();
        let size = letter.size() + 32;
        owed.seq = self.append(Record::Died(Box::new(letter)), size);
        if let Some(act) = self.activations.get_mut(actor) {
            act.settled_at = RecordSeq(owed.seq.0 + 1);
        }
        let gone = self.spec.dead().lost() - lost;
        if gone > 0 {
            tracing::error!(partition = %self.partition, gone, "too many dead letters; the oldest are lost");
            HostCounters::add(&self.shared.counters.dead.lost, gone);
        }
        self.count_dead();
        let line = owed.message.map(|(from, _)| from);
        self.owed.push_back(owed);
        if let Some(from) = line {
            self.message_recorded(from);
            self.pump_line_in(from);
        }
    }

    pub(super) fn count_dead(&self) {
        self.gauges.dead.store(self.spec.dead().len() as u64, std::sync::atomic::Ordering::Relaxed);
    }

    /// A call to the actor that stands for the dead letters kept here.
    pub(super) fn on_dead_call(&mut self, call: HostCall, reply: ReplyTo) {
        let ask = match call.args.format {
            Format::Postcard => postcard::take_from_bytes::<DeadAsk>(&call.args.bytes).ok(),
            // No application's kind, and nothing for the edge.
            Format::Json | Format::Message => None,
        };
        let answer = match ask {
            Some((DeadAsk::List { after, kind, key }, [])) => {
                self.dead_page(after, &DeadFilter { kind, key }).map(|page| encoded(&page))
            }
            Some((DeadAsk::Show(number), [])) => {
                self.dead_letter(number).map(|kept| encoded(&self.entry(number, &kept, true)))
            }
            Some((DeadAsk::Retry(number), [])) if !call.read_only => {
                return self.take_dead(call, reply, number, true);
            }
            Some((DeadAsk::Drop(number), [])) if !call.read_only => {
                return self.take_dead(call, reply, number, false);
            }
            _ => Err(self.shared.kinds.unknown(call.target.kind())),
        };
        let answered = self.answered(answer.map_or_else(Answer::Fault, Answer::Ok));
        self.answer_as_read(reply, answered);
    }

    /// Drops a letter, or sends its message again.
    fn take_dead(&mut self, call: HostCall, reply: ReplyTo, number: u64, again: bool) {
        let Some((call, reply)) = self.unanswered(call, reply) else { return };
        let kept = match self.dead_letter(number) {
            Ok(kept) => kept,
            Err(fault) => {
                let answered = self.answered(Answer::Fault(fault));
                return self.answer_as_read(reply, answered);
            }
        };
        let mut effects = Effects::default();
        if again {
            effects.sends.push(kept.letter.message);
        }
        if let Some(full) = self.outbox_full(&effects) {
            return self.refuse(reply, full);
        }
        let again = effects.sends.pop().map(|message| OutboxItem { from: kept.letter.from, message });
        let mut owed = Owed::nothing(RecordSeq(0));
        owed.sends = again.is_some();
        let (target, work) = (call.target.clone(), Work::Call(Box::new(call), reply));
        let cause = self.cause_of(&target, work, Answer::Ok(Bytes::new()), &mut owed);
        let Cause::Call { request, ack_below, keep, reply } = cause else {
            unreachable!("a call makes a call's cause");
        };
        let size = 96 + again.as_ref().map_or(0, |item| item.message.args.len() + item.message.method.len());
        let taken = DeadTaken { request, ack_below, keep, reply, number, again };
        owed.seq = self.append(Record::DeadTaken(Box::new(taken)), size);
        self.owed.push_back(owed);
        self.count_dead();
    }

    /// A letter that is kept as far as this host knows.
    fn dead_letter(&self, number: u64) -> Result<KeptLetter, Fault> {
        let id = DeadId { partition: self.partition, number }.to_string();
        if !self.spec.dead().holds(number) {
            return Err(Fault::NoDeadLetter { id });
        }
        let unreadable =
            |why: String| Fault::Unreadable { what: "a dead letter".into(), at: id.clone(), why };
        match self.shared.rows.get(self.group, &rows::dead(number)) {
            Ok(Some(row)) => postcard::from_bytes(&row).map_err(|error| unreadable(error.to_string())),
            Ok(None) => {
                let why = "its record is not applied yet; try again".to_owned();
                Err(Fault::Unavailable { what: format!("the dead letter {id}"), why })
            }
            Err(error) => Err(rows_failed("a dead letter", &id, &error)),
        }
    }

    fn dead_page(&self, after: u64, filter: &DeadFilter) -> Result<DeadPage, Fault> {
        let (from, to) = rows::dead_after(after);
        let found =
            self.shared.rows.scan(self.group, &from, Some(&to), PAGE_LETTERS_MAX).map_err(|error| {
                let partition = format!("partition {}", self.partition);
                rows_failed("its dead letters", &partition, &error)
            })?;
        let dead = self.spec.dead();
        let mut page = DeadPage { kept: dead.len() as u64, lost: dead.lost(), ..DeadPage::default() };
        if found.len() == PAGE_LETTERS_MAX {
            page.next = found.last().and_then(|(key, _)| rows::read_dead(key));
        }
        for (key, row) in found {
            let Some(number) = rows::read_dead(&key).filter(|number| dead.holds(*number)) else { continue };
            match postcard::from_bytes::<KeptLetter>(&row) {
                Ok(kept) if filter.lets(&kept.letter.message.target) => {
                    page.entries.push(self.entry(number, &kept, false));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(partition = %self.partition, number, %error, "a dead letter is unreadable");
                }
            }
        }
        Ok(page)
    }

    fn entry(&self, number: u64, kept: &KeptLetter, with_args: bool) -> DeadEntry {
        let letter = &kept.letter;
        DeadEntry {
            number,
            at: kept.at.0,
            sender: letter.from.clone(),
            reminder: match &letter.origin {
                Origin::Reminder { name, .. } => Some(name.clone()),
                Origin::Message { .. } => None,
            },
            target: letter.message.target.clone(),
            method: letter.message.method.clone(),
            code: letter.code.clone(),
            why: letter.why.clone(),
            tries: letter.tries,
            args_bytes: letter.message.args.len() as u64,
            args: if with_args { self.args_json(&letter.message) } else { None },
        }
    }

    /// The arguments by name, if this build knows the handler and they are not too large to be shown.
    fn args_json(&self, message: &Message) -> Option<String> {
        let (kind, method) = handler(&self.shared.kinds, &message.target, &message.method).ok()?;
        if message.args.len() > SHOWN_ARGS_BYTES_MAX {
            return None;
        }
        let params = kind.methods()[method].params;
        let mut types = Types::default();
        let root = Type::Tuple(params.iter().map(|param| (param.schema)(&mut types)).collect());
        let values = match (Schema { root, types, replaces: Vec::new() }).to_json(&message.args).ok()? {
            serde_json::Value::Array(values) => values,
            // No parameters: the empty tuple is a unit.
            _ => Vec::new(),
        };
        let named: serde_json::Map<_, _> =
            params.iter().map(|param| param.name.to_owned()).zip(values).collect();
        Some(serde_json::Value::Object(named).to_string())
    }
}

/// Code and words for why an answer makes a message a dead letter.
fn reason(answer: &Answer) -> (&'static str, String) {
    let (code, mut why) = match answer {
        Answer::Fault(fault) => (fault.code(), fault.to_string()),
        Answer::App(error) => ("app", String::from_utf8_lossy(error).into_owned()),
        Answer::Ok(_) => unreachable!("what has succeeded is no dead letter"),
    };
    why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
    (code, why)
}

fn encoded<T: serde::Serialize>(value: &T) -> Bytes {
    postcard::to_stdvec(value).expect("our own types always encode").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_short() {
        let long = Answer::App(Bytes::from("ä".repeat(WHY_BYTES_MAX)));
        let (code, why) = reason(&long);
        assert_eq!((code, why.len(), why.chars().all(|c| c == 'ä')), ("app", WHY_BYTES_MAX, true));
        let fault = Answer::Fault(Fault::BadName("x".into()));
        assert_eq!(reason(&fault), ("bad_name", "bad name: x".to_owned()));
    }
}
