//! Programs of the system that make the faults.
//!
//! Owns how they are called and how their failures are told. Never keeps state. In: a program and its
//! arguments; out: its output, or one line that says what failed.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a program to a success. May be called in a task: others go on meanwhile.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    output(program, arguments).map(drop)
}

/// Runs a program to a success, for its output.
pub(super) fn output(program: &str, arguments: &[&str]) -> Result<Output, String> {
    let line = || format!("`{program} {}`", arguments.join(" "));
    match tokio::task::block_in_place(|| Command::new(program).args(arguments).output()) {
        Err(error) => Err(format!("cannot run {}: {error}", line())),
        Ok(output) if output.status.success() => Ok(output),
        Ok(output) => Err(format!("{}: {}", line(), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Whether a program can be found, and in which package it is if not.
pub(super) fn need(program: &str, package: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return Ok(());
    }
    Err(format!("there is no `{program}` (package {package})"))
}

/// The text of a path for an argument.
pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("a run's folder has a name of letters")
}
