//! The node binary `perennial`: every command, with the cart and chat examples built in.

use std::process::ExitCode;

use perennial_runtime::{App, Launcher};

fn main() -> ExitCode {
    Launcher::new(App::new("perennial")).run()
}
