//! The node binary `perennial`: every command, with the cart and chat examples built in.

use std::process::ExitCode;

use perennial_example_cart::CartLoad;
use perennial_example_chat::ChatLoad;
use perennial_runtime::{App, Launcher};

fn main() -> ExitCode {
    let app = perennial_example_chat::register(perennial_example_cart::register(App::new("perennial")));
    Launcher::new(app).workload(CartLoad).workload(ChatLoad).run()
}
