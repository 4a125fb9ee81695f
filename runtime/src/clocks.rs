//! The actor that `bench` measures reminders with: it sets many and counts how late each fires.

use std::time::Duration;

use perennial::When;
use perennial::core::time::Millis;
use perennial::prelude::*;

/// Most reminders that one call sets: a record of them stays far below its limit.
pub(crate) const SET_MAX: u32 = 500;
/// Buckets of lateness, see [`bucket`].
const BUCKETS: usize = 96;

/// Sets reminders and counts how late they fire.
#[data]
#[derive(Default)]
pub struct Clock {
    fired: u64,
    late: Vec<u32>,
}

#[actor(kind = "perennial.Clock")]
impl Clock {
    /// Sets `count` reminders with names from `first` on, the first due at `from_ms` and the others evenly
    /// behind it, `apart_micros` apart.
    pub fn set(&mut self, ctx: &mut Ctx<Self>, first: u32, count: u32, from_ms: u64, apart_micros: u64) {
        for n in 0..count.min(SET_MAX) {
            let due = Millis(from_ms).plus(u64::from(n) * apart_micros / 1000);
            ctx.schedule((first + n).to_string(), When::at(due), ctx.me().strike());
        }
    }

    /// One fires.
    pub fn strike(&mut self, ctx: &mut Ctx<Self>) {
        let Some(due) = ctx.due() else { return };
        self.fired += 1;
        self.late.resize(BUCKETS, 0);
        self.late[bucket(ctx.now().since(due))] += 1;
    }

    /// How many have fired, and how many of them with a lateness of each bucket.
    pub fn fired(&self) -> (u64, Vec<u32>) {
        (self.fired, self.late.clone())
    }

    /// Sets one that recurs, to look at and cancel.
    pub fn every(&mut self, ctx: &mut Ctx<Self>, name: String, ms: u64) {
        ctx.schedule(name, When::every(Duration::from_millis(ms)), ctx.me().strike());
    }
}

/// The bucket of a lateness in milliseconds: four for each power of two.
fn bucket(ms: u64) -> usize {
    if ms < 8 {
        return ms as usize;
    }
    let power = 63 - ms.leading_zeros() as usize;
    let quarter = (ms >> (power - 2)) as usize & 3;
    (8 + (power - 3) * 4 + quarter).min(BUCKETS - 1)
}

/// The longest lateness of a bucket, in milliseconds.
pub(crate) fn longest(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (power, quarter) = ((bucket - 8) / 4 + 3, (bucket as u64 - 8) % 4);
    (1 << power) + ((quarter + 1) << (power - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lateness_is_within_its_bucket() {
        for ms in (0..4096).chain([100_000, 1_000_000]) {
            let at = bucket(ms);
            assert!(ms <= longest(at), "{ms}");
            assert!(at == 0 || ms > longest(at - 1), "{ms}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
