//! A node of build 2, for tests of upgrades.

use std::process::ExitCode;

use perennial_runtime::Run;

fn main() -> ExitCode {
    perennial_tests::upgrade::v2::app().run()
}
