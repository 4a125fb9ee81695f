//! What people and programs see: data on stdout, everything else on stderr.
//!
//! Owns colours (only on a terminal), tables, progress and the set-up of logs. A closed pipe ends the
//! output, never the command.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Tables and sentences for people.
    #[default]
    Text,
    /// One JSON document for programs.
    Json,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One readable line each.
    #[default]
    Plain,
    /// One JSON object each.
    Json,
}

/// What a bare level leaves out: libraries that tell at `warn` and `info` what is usual here.
const QUIET: &str = "ractor=error,raft_engine=error,fjall=warn,lsm_tree=warn,hyper=warn";

/// Starts logging to stderr. The filter is that of `RUST_LOG`, such as `perennial=debug`; a bare level such
/// as `info` quiets the libraries below.
///
/// # Errors
/// What is wrong with the filter.
pub(crate) fn start_logs(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = parsed(filter)?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start in one process (tests) keeps the first.
    let _ = match format {
        LogFormat::Plain => logs.compact().try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
    Ok(())
}

/// Whether logs can be started with a filter.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    parsed(filter).map(drop)
}

fn parsed(filter: &str) -> Result<EnvFilter, String> {
    let bare = filter.parse::<tracing::Level>().is_ok();
    let parsed =
        if bare { EnvFilter::try_new(format!("{filter},{QUIET}")) } else { EnvFilter::try_new(filter) };
    parsed.map_err(|why| format!("log filter {filter:?}: {why}; write info or perennial=debug, for example"))
}

/// Prints a line of data.
pub(crate) fn data(line: &str) {
    let _ = writeln!(anstream::stdout(), "{line}");
}

/// Prints a JSON document.
pub(crate) fn json(value: &impl Serialize) {
    data(&serde_json::to_string_pretty(value).expect("our own types have string keys and finite numbers"));
}

/// Prints a line for people on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// Prints a warning on stderr.
pub(crate) fn warn(line: &str) {
    say(&format!("{} {line}", paint("warning:", AnsiColor::Yellow)));
}

/// Prints an error on stderr.
pub(crate) fn error(line: &str) {
    say(&format!("{} {line}", paint("error:", AnsiColor::Red)));
}

/// Colours a text; the colour is dropped where it would not be shown.
pub(crate) fn paint(text: &str, color: AnsiColor) -> String {
    let style = Style::new().fg_color(Some(color.into())).bold();
    format!("{style}{text}{style:#}")
}

/// An empty table; columns whose header starts with `#` are aligned right (and lose the `#`).
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(header.iter().map(|name| name.trim_start_matches('#')));
    for (at, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(at).filter(|_| name.starts_with('#')) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// `1.2 ms` and the like.
pub(crate) fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// `12.3 MiB`.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A bar or spinner on a terminal; plain lines elsewhere.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    /// A spinner.
    pub(crate) fn spinner() -> Self {
        Self::new("{spinner} {msg}", None)
    }

    /// A bar up to `steps`.
    pub(crate) fn bar(steps: u64) -> Self {
        Self::new("{spinner} [{bar:32}] {msg}", Some(steps))
    }

    fn new(template: &str, steps: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(steps, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template(template).expect("our own templates are valid"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, last: String::new() }
    }

    /// Says what is going on; without a terminal a line each time it changes.
    pub(crate) fn state(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => say(text),
        }
    }

    /// Says what changes all the time; nothing without a terminal.
    pub(crate) fn detail(&self, step: u64, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(text.to_owned());
        }
    }

    /// A line that stays.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
