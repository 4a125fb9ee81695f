//! What can go wrong with a call, as users see it.
//!
//! Every fault answers two questions: may something have been applied, and may the caller try again
//! with the same request id? Its code is stable; its text says what, where and what to do.

use std::fmt;

use perennial_core::id::NameError;
use serde::{Deserialize, Serialize};

use crate::call::EventId;
use crate::data::Data;

/// Whether a failed call may have left a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// Nothing was changed.
    No,
    /// It may have been applied; retry with the same request id to learn the answer.
    Unknown,
}

/// A fault of the cluster or of the call itself, as opposed to an error of the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// No actor type of this name is registered.
    #[error("unknown kind {kind:?}; this cluster has: {}", known.join(", "))]
    UnknownKind {
        /// The kind that was asked for.
        kind: String,
        /// The kinds there are.
        known: Vec<String>,
    },
    /// The kind has no such handler.
    #[error("{kind} has no handler {method:?}; it has: {}", known.join(", "))]
    UnknownMethod {
        /// Kind.
        kind: String,
        /// The handler that was asked for.
        method: String,
        /// The handlers there are, with their parameters.
        known: Vec<String>,
    },
    /// The arguments do not fit the handler.
    #[error("bad arguments for {kind}.{method}: {problem}; it takes {takes}")]
    BadArguments {
        /// Kind.
        kind: String,
        /// Handler.
        method: String,
        /// What is wrong.
        problem: String,
        /// What the handler takes, such as `{"sku": String, "qty": u32}`.
        takes: String,
    },
    /// A kind, key or node name is outside its limits.
    #[error("bad name: {0}")]
    BadName(String),
    /// A read was asked for, or made the call, but the handler writes.
    #[error(
        "{kind}.{method} changes state, and no read runs a write: call it by POST, without a bound on its age, \
         and not from a handler that reads (`&self`)"
    )]
    NotARead {
        /// Kind.
        kind: String,
        /// Handler.
        method: String,
    },
    /// The call would wait for itself.
    #[error("call cycle: {}", path.join(" -> "))]
    Cycle {
        /// The actors, from the first caller to the one that is waiting already.
        path: Vec<String>,
    },
    /// A bounded line is full.
    #[error("{what} of {at} is full ({limit}); try again later")]
    Overloaded {
        /// Which limit.
        what: String,
        /// Where.
        at: String,
        /// Its value.
        limit: u64,
    },
    /// The deadline passed; whether the call was applied is not known.
    #[error(
        "no answer from {actor} within the deadline; it may have been applied: retry with the same request id"
    )]
    TimedOut {
        /// Whom was called.
        actor: String,
    },
    /// The leader changed while the call was on its way to commit.
    #[error(
        "the outcome of the call to {actor} is unknown, its leader changed: retry with the same request id"
    )]
    OutcomeUnknown {
        /// Whom was called.
        actor: String,
    },
    /// No majority or no leader can be reached; nothing was applied.
    #[error("{what} is unavailable: {why}")]
    Unavailable {
        /// What.
        what: String,
        /// Why, and what to do.
        why: String,
    },
    /// Something is above its size limit.
    #[error("{what} of {at} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// Where.
        at: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The handler panicked; its turn was undone.
    #[error("{kind}.{method} panicked, its turn was undone: {message}")]
    Panicked {
        /// Kind.
        kind: String,
        /// Handler.
        method: String,
        /// The panic's message.
        message: String,
    },
    /// Stored or received bytes cannot be read by this build.
    #[error("{what} of {at} cannot be read: {why}")]
    Unreadable {
        /// What.
        what: String,
        /// Where.
        at: String,
        /// Why, and what to do.
        why: String,
    },
    /// The call was answered already and acknowledged, so its reply is gone.
    #[error("the request of {actor} was acknowledged before; its answer is no longer kept")]
    Forgotten {
        /// Whom was called.
        actor: String,
    },
    /// No dead letter has this name (any more).
    #[error("there is no dead letter {id}: it was retried or dropped, or had to make room")]
    NoDeadLetter {
        /// Its name.
        id: String,
    },
    /// What `ctx.schedule` or `ctx.timer` was given is no time to be due.
    #[error("bad schedule: {0}")]
    BadSchedule(String),
    /// A stream of events cannot go on without a gap.
    #[error(
        "the events of {actor} after {after} cannot be given: {why}; {}, and read the actor's state anew",
        match oldest {
            Some(oldest) => format!("the oldest one kept is {oldest}: follow from the start"),
            None => "none is kept: follow from the start".to_owned(),
        }
    )]
    EventsGone {
        /// Whose events.
        actor: String,
        /// Where the stream was to go on.
        after: EventId,
        /// The oldest event behind it that is kept.
        oldest: Option<EventId>,
        /// Why.
        why: String,
    },
    /// A follower of events did not take them in time and was cut off.
    #[error(
        "the follower of {actor} is cut off: {limit} waited for it; resume after the last event it has got"
    )]
    TooSlow {
        /// Whose events.
        actor: String,
        /// The limit, such as `1024 events`.
        limit: String,
    },
}

impl Fault {
    /// Stable code for programs, such as `unknown_kind`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownKind { .. } => "unknown_kind",
            Self::UnknownMethod { .. } => "unknown_method",
            Self::BadArguments { .. } => "bad_arguments",
            Self::BadName(_) => "bad_name",
            Self::NotARead { .. } => "not_a_read",
            Self::Cycle { .. } => "call_cycle",
            Self::Overloaded { .. } => "overloaded",
            Self::TimedOut { .. } => "timed_out",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::Unavailable { .. } => "unavailable",
            Self::TooLarge { .. } => "too_large",
            Self::Panicked { .. } => "panicked",
            Self::Unreadable { .. } => "unreadable",
            Self::Forgotten { .. } => "forgotten",
            Self::NoDeadLetter { .. } => "no_dead_letter",
            Self::BadSchedule(_) => "bad_schedule",
            Self::EventsGone { .. } => "events_gone",
            Self::TooSlow { .. } => "too_slow",
        }
    }

    /// Whether something may have been applied.
    #[must_use]
    pub fn applied(&self) -> Applied {
        match self {
            Self::TimedOut { .. } | Self::OutcomeUnknown { .. } => Applied::Unknown,
            _ => Applied::No,
        }
    }

    /// Whether a retry with the same request id can succeed without anything else changing.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Self::Overloaded { .. }
                | Self::TimedOut { .. }
                | Self::OutcomeUnknown { .. }
                | Self::Unavailable { .. }
                | Self::TooSlow { .. }
        )
    }

    /// The HTTP status a gateway answers with.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self {
            Self::UnknownKind { .. } | Self::UnknownMethod { .. } | Self::NoDeadLetter { .. } => 404,
            Self::BadArguments { .. } | Self::BadName(_) | Self::BadSchedule(_) => 400,
            Self::NotARead { .. } => 405,
            Self::Cycle { .. } => 508,
            Self::Overloaded { .. } | Self::TooSlow { .. } => 429,
            Self::TimedOut { .. } => 504,
            Self::OutcomeUnknown { .. } | Self::Unavailable { .. } => 503,
            Self::TooLarge { .. } => 413,
            Self::Panicked { .. } | Self::Unreadable { .. } => 500,
            Self::Forgotten { .. } | Self::EventsGone { .. } => 410,
        }
    }
}

impl From<NameError> for Fault {
    fn from(error: NameError) -> Self {
        Self::BadName(error.to_string())
    }
}

/// Why a fallible call did not give a value: the actor's own error or a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError<E> {
    /// The handler returned this error; its turn was undone.
    App(E),
    /// The call itself failed.
    Fault(Fault),
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(error) => error.fmt(f),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}
impl<E: std::error::Error + 'static> std::error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::App(error) => Some(error),
            Self::Fault(fault) => Some(fault),
        }
    }
}

impl<E: Data> From<E> for CallError<E> {
    fn from(error: E) -> Self {
        Self::App(error)
    }
}
impl<E> From<Fault> for CallError<E> {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What a handler returns that calls other actors: its own errors and, passed on by `?`, faults.
pub type Reply<T, E> = Result<T, CallError<E>>;

/// Maps the other actor's error in the answer of a call, keeping faults.
pub trait MapApp<T, E> {
    /// Replaces the application error; faults pass unchanged, so that `?` works in a [`Reply`].
    ///
    /// # Errors
    /// The mapped error, or the fault.
    fn map_app<F>(self, map: impl FnOnce(E) -> F) -> Result<T, CallError<F>>;
}

impl<T, E> MapApp<T, E> for Result<T, CallError<E>> {
    fn map_app<F>(self, map: impl FnOnce(E) -> F) -> Result<T, CallError<F>> {
        self.map_err(|error| match error {
            CallError::App(error) => CallError::App(map(error)),
            CallError::Fault(fault) => CallError::Fault(fault),
        })
    }
}
