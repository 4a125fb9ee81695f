//! What a stateless worker cannot have.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Writes;

#[actor(stateless)]
impl Writes {
    pub fn resize(&mut self) {}
}

#[data]
#[derive(Default)]
pub struct Behind;

#[actor(stateless)]
impl Behind {
    #[read(stale = "1s")]
    pub fn resize(&self) {}
}

#[data]
#[derive(Default)]
pub struct Passivated;

#[actor(stateless)]
impl Passivated {
    #[passivating]
    fn leave(&mut self) {}
}

#[data]
#[derive(Default)]
pub struct Publishes;

#[actor(stateless, event = u64)]
impl Publishes {}

#[data]
#[derive(Default)]
pub struct Keeps;

#[actor(stateless, keep_events = 10)]
impl Keeps {}

#[data]
#[derive(Default)]
pub struct WithMailbox;

#[actor(stateless, mailbox = 64)]
impl WithMailbox {}

#[data]
#[derive(Default)]
pub struct WithState;

#[actor(stateless, state_bytes = "64KiB")]
impl WithState {}

#[data]
#[derive(Default)]
pub struct WithRecords;

#[actor(stateless, record_bytes = "64KiB")]
impl WithRecords {}

#[data]
#[derive(Default)]
pub struct Negated;

#[actor(stateless = false)]
impl Negated {}

#[data]
#[derive(Default)]
pub struct Unbalanced;

#[actor(stateless, balance = "random")]
impl Unbalanced {}

#[data]
#[derive(Default)]
pub struct BalancedByPath;

#[actor(stateless, balance = ByKey)]
impl BalancedByPath {}

#[data]
#[derive(Default)]
pub struct BalancedActor;

#[actor(balance = "by_key")]
impl BalancedActor {}

#[data]
#[derive(Default)]
pub struct IdempotentActor;

#[actor(idempotent)]
impl IdempotentActor {}

#[data]
#[derive(Default)]
pub struct PrivateRead;

#[actor]
impl PrivateRead {
    #[read(stale = "1s")]
    fn size(&self) {}
}

fn main() {}
