//! An application's main: reads the command line, runs the command, gives the exit code.
//!
//! Owns the process's start and end: the crypto provider, the async runtime, the last error line. Never
//! knows what a command does.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use perennial::App;

use crate::cli::{self, Cli, Command};
use crate::commands::{self, Launch};
use crate::counter::{self, CounterLoad};
use crate::exit::{CommandError, Exit};
use crate::output;
use crate::workload::Workload;

/// How long tasks may take to end after a command is done.
const LEFTOVERS_MAX: Duration = Duration::from_millis(500);

/// Gives an application a main with every command: serve, dev, demo, call, status, bench.
pub trait Run {
    /// Runs the command that the command line names; without one, `dev`.
    fn run(self) -> ExitCode;
}

impl Run for App {
    fn run(self) -> ExitCode {
        Launcher::new(self).run()
    }
}

/// An application with what its main needs besides.
pub struct Launcher {
    app: App,
    workloads: Vec<Arc<dyn Workload>>,
}

impl Launcher {
    /// Of an application without workloads of its own: `demo` drives counters.
    #[must_use]
    pub fn new(app: App) -> Self {
        Self { app, workloads: Vec::new() }
    }

    /// Adds what `demo` drives.
    #[must_use]
    pub fn workload(mut self, workload: impl Workload) -> Self {
        self.workloads.push(Arc::new(workload));
        self
    }

    /// Runs the command that the command line names; without one, `dev`.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let cli = match cli::parse(self.app.name(), std::env::args_os()) {
            Ok(cli) => cli,
            Err(said) => {
                let _ = said.print();
                return u8::try_from(said.exit_code()).map_or(Exit::Usage.into(), ExitCode::from);
            }
        };
        match self.command(cli) {
            Ok(exit) => exit.into(),
            Err(error) => {
                output::error(&error.to_string());
                error.exit().into()
            }
        }
    }

    fn command(mut self, cli: Cli) -> Result<Exit, CommandError> {
        // Two providers may be linked, and without a choice the first handshake would panic. An error
        // means that a choice was made before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        if self.workloads.is_empty() {
            self.workloads.push(Arc::new(CounterLoad));
        }
        let program = std::env::args().next().unwrap_or_else(|| self.app.name().to_owned());
        let launch = Launch { app: counter::register(self.app), workloads: self.workloads, program };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(CommandError::io("start the async runtime"))?;
        let done = runtime.block_on(run(launch, cli));
        runtime.shutdown_timeout(LEFTOVERS_MAX);
        done
    }
}

async fn run(launch: Launch, cli: Cli) -> Result<Exit, CommandError> {
    match cli.command.unwrap_or_else(Command::dev) {
        Command::Serve(args) => commands::serve::run(launch.app, *args).await,
        Command::Dev(args) => commands::dev::run(&launch, args).await,
        Command::Demo(args) => commands::demo::run(&launch, args).await,
        Command::Call(args) => commands::call::run(&launch, args).await,
        Command::Reminder(args) => commands::reminder::run(&launch, args.what).await,
        Command::Status(args) => commands::status::run(&launch, args).await,
        Command::Dead(args) => commands::dead::run(&launch, args).await,
        Command::Bench(args) => commands::bench::run(&launch, args).await,
        Command::Cert(args) => commands::cert::run(&args),
        Command::Key(args) => commands::key::run(&args),
    }
}
