//! Every limit a user or operator can run into, by name.
//!
//! Each is enforced where it belongs; what happens there is said with the limit and in the fault it
//! gives. Limits of the gateway are in the runtime, those of links in [`crate::link::LinkConfig`].

pub use perennial_core::id::{KEY_BYTES_MAX, KIND_BYTES_MAX, NODE_ID_BYTES_MAX};
pub use perennial_core::partition::dead::{DEAD_LETTER_BYTES_MAX, DEAD_LETTERS_MAX};
pub use perennial_core::partition::dedup::{KEPT_BYTES_MAX, SESSION_KEPT_BYTES_MAX, SESSION_SILENCE_MS_MAX};
pub use perennial_core::partition::record::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, ITEM_KEY_BYTES_MAX, RECORD_BYTES_MAX,
};

pub use crate::actor::{EVENTS_KEPT_DEFAULT, EVENTS_KEPT_FOR_DEFAULT, EVENTS_KEPT_MAX};
pub use crate::call::CALL_TIMEOUT_DEFAULT;
pub use crate::collections::ITEM_BYTES_MAX;
pub use crate::ctx::{REMINDER_NAME_BYTES_MAX, SCHEDULED_BYTES_MAX, TIMER_EVERY_MIN};
pub use crate::host::events::{EVENTS_SURPLUS_MAX, FOLLOWERS_MAX};
pub use crate::host::memory::{ACTIVATION_BYTES, ACTORS_BYTES_DEFAULT, ACTORS_BYTES_MIN};
pub use crate::host::newcomers::{ACTIVATIONS_MAX, NEW_ACTORS_BURST_MAX, NEW_ACTORS_PER_SECOND_MAX};
pub use crate::host::reminders::{REMINDERS_OF_ONE_MAX, REMINDERS_TOLD_MAX};
pub use crate::host::sweep::IDLE_MS_MAX;
pub use crate::host::timers::TIMERS_OF_ONE_MAX;
pub use crate::host::turns::{
    KEYED_REPLY_KEEP_MS, NESTED_REPLY_KEEP_MS, OUTBOX_MESSAGES_MAX, UNATTENDED_RETRY_MAX,
    UNATTENDED_TIMED_OUT_MAX, UNATTENDED_TURN_MAX,
};
pub use crate::host::{MAILBOX_CALLS_MAX, PARTITION_CALLS_MAX, STATE_BYTES_MAX};
pub use crate::node::health::{CHECK_MAX, CHECK_PERIOD, CHECK_WHY_BYTES_MAX, STILL_MAX};
pub use crate::options::WORKERS_DEFAULT;
pub use crate::router::CALL_TIMEOUT_MAX;
pub use crate::router::events::{FOLLOWER_EVENTS_MAX, FOLLOWER_STALL_MAX};
pub use crate::when::{CRON_BYTES_MAX, MISSED_AFTER_MS, MISSED_FIRINGS_MAX, REMINDER_EVERY_MS_MIN};
