//! One binary for all targets; the variable `TARGET` names the one to run.

#![no_main]

use std::sync::LazyLock;

use perennial::fuzz::{MEMORY_BASE, Target, target};

static CHOSEN: LazyLock<&Target> =
    LazyLock::new(|| target(&std::env::var("TARGET").expect("TARGET names what to fuzz")));

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let used = allocation_counter::measure(|| (CHOSEN.run)(input)).bytes_max as usize;
    let bound = MEMORY_BASE + CHOSEN.memory_factor * input.len();
    assert!(used <= bound, "{used} bytes of memory for {} of input", input.len());
});
