//! What limits of a kind are.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct NoCalls;

#[actor(mailbox = 0)]
impl NoCalls {}

#[data]
#[derive(Default)]
pub struct TextForANumber;

#[actor(mailbox = "64")]
impl TextForANumber {}

#[data]
#[derive(Default)]
pub struct Negative;

#[actor(concurrency = -1)]
impl Negative {}

#[data]
#[derive(Default)]
pub struct TooLong;

#[actor(concurrency = 5_000_000_000)]
impl TooLong {}

#[data]
#[derive(Default)]
pub struct NumberForAText;

#[actor(state_bytes = 65536)]
impl NumberForAText {}

#[data]
#[derive(Default)]
pub struct WithoutUnit;

#[actor(state_bytes = "64")]
impl WithoutUnit {}

#[data]
#[derive(Default)]
pub struct OtherUnit;

#[actor(record_bytes = "64KB")]
impl OtherUnit {}

#[data]
#[derive(Default)]
pub struct NoBytes;

#[actor(record_bytes = "0KiB")]
impl NoBytes {}

#[data]
#[derive(Default)]
pub struct Misspelt;

#[actor(mailboxes = 64)]
impl Misspelt {}

#[data]
#[derive(Default)]
pub struct Twice;

#[actor(mailbox = 64, mailbox = 128)]
impl Twice {}

#[data]
#[derive(Default)]
pub struct NoEventsKept;

#[actor(event = u64, keep_events = 0)]
impl NoEventsKept {}

#[data]
#[derive(Default)]
pub struct TooManyEventsKept;

#[actor(event = u64, keep_events = 1_000_000)]
impl TooManyEventsKept {}

#[data]
#[derive(Default)]
pub struct EventsKeptForANumber;

#[actor(event = u64, keep_events_for = 24)]
impl EventsKeptForANumber {}

#[data]
#[derive(Default)]
pub struct KeptButNotPublished;

#[actor(keep_events = 10)]
impl KeptButNotPublished {}

#[data]
#[derive(Default)]
pub struct Calls;

#[actor(mailbox = 16_385)]
impl Calls {}

#[data]
#[derive(Default)]
pub struct Turns;

#[actor(concurrency = 16_385)]
impl Turns {}

#[data]
#[derive(Default)]
pub struct LargeState;

#[actor(state_bytes = "385KiB")]
impl LargeState {}

#[data]
#[derive(Default)]
pub struct LargeRecord;

#[actor(record_bytes = "1MiB")]
impl LargeRecord {}

fn main() {}
