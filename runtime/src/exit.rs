//! How a command ends: exit codes and the one error type of commands.
//!
//! Owns which failure gives which code. In: errors of every part; out: one line and a code.

use std::process::ExitCode;

use perennial::Fault;
use perennial::client::ConnectError;
use perennial::node::StartError;

use crate::certs::CertsError;
use crate::gateway::GatewayError;
use crate::harness::HarnessError;
use crate::settings::SettingsError;

/// Exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// It was tried and failed.
    Failed = 1,
    /// The command line or the settings make no sense.
    Usage = 2,
    /// No node can be reached.
    Unreachable = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The settings of `serve`.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Something about the command line that clap cannot see.
    #[error("{0}")]
    Usage(String),
    /// The node.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// Certificates could not be made.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// Node processes.
    #[error(transparent)]
    Harness(#[from] HarnessError),
    /// No cluster to talk to.
    #[error("{0}")]
    NoCluster(String),
    /// A cluster that does not answer.
    #[error("{error}; {hint}")]
    Connect {
        /// Why.
        error: ConnectError,
        /// What to do.
        hint: String,
    },
    /// A call failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A file or a pipe.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried, with the path.
        doing: String,
        /// Cause.
        source: std::io::Error,
    },
    /// What was asked for did not come true.
    #[error("{0}")]
    Failed(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl CommandError {
    /// Wraps an I/O error with what was tried.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// The code this error ends the process with.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Settings(_) | Self::Usage(_) | Self::Start(StartError::Settings(_)) => Exit::Usage,
            Self::NoCluster(_)
            | Self::Connect { error: ConnectError::Unreachable { .. }, .. }
            | Self::Harness(HarnessError::Connect(ConnectError::Unreachable { .. }))
            | Self::Fault(Fault::Unavailable { .. }) => Exit::Unreachable,
            _ => Exit::Failed,
        }
    }
}
