//! A node of stateless workers, for tests of several of them.

use std::process::ExitCode;

use perennial_runtime::Run;

fn main() -> ExitCode {
    perennial_tests::workers::app().run()
}
