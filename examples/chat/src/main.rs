//! The chat example as a program of its own: `serve`, `dev`, `demo`, `call` and the other commands.

use std::process::ExitCode;

use perennial_runtime::{App, Launcher};

fn main() -> ExitCode {
    let app = perennial_example_chat::register(App::new("chat"));
    Launcher::new(app).workload(perennial_example_chat::ChatLoad).run()
}
