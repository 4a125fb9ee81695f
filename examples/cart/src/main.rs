//! The cart example as a program of its own: `serve`, `dev`, `demo`, `call` and the other commands.

use std::process::ExitCode;

use perennial_runtime::{App, Launcher};

fn main() -> ExitCode {
    let app = perennial_example_cart::register(App::new("cart"));
    Launcher::new(app).workload(perennial_example_cart::CartLoad).run()
}
