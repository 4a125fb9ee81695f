//! Seeds what this process draws from the operating system.
//!
//! Hash maps of the standard library, Tokio's `select!` and `rand` begin with bytes of `getrandom`. A
//! program that links this crate draws them from a seed instead, so that two runs of a simulation take the
//! same turns: the symbol stands in front of the C library's, as in madsim and mad-turmoil. Every thread has
//! the same stream, whatever the others draw. For simulations only: nothing here is secret.
//!
//! The only crate with unsafe code, because a symbol of the C library cannot be replaced without it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

static SEED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// How many words this thread has drawn.
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// Seeds what is drawn from now on, by every thread anew. Call it first of all.
pub fn seed(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
    DRAWN.set(0);
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn word(number: u64) -> u64 {
    let mut z = SEED.load(Ordering::Relaxed).wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The C library's function of this name, from the seed.
///
/// # Safety
/// `buffer` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    if buffer.is_null() {
        return -1;
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    for chunk in bytes.chunks_mut(8) {
        let number = DRAWN.get() + 1;
        DRAWN.set(number);
        chunk.copy_from_slice(&word(number).to_le_bytes()[..chunk.len()]);
    }
    length as isize
}
