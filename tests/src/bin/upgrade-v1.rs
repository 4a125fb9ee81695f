//! A node of build 1, for tests of upgrades.

use std::process::ExitCode;

use perennial_runtime::Run;

fn main() -> ExitCode {
    perennial_tests::upgrade::v1::app().run()
}
