//! Housekeeping: what leaves memory and what the log may forget.

use std::time::Duration;

use perennial_core::partition::record::Record;
use perennial_core::partition::rows;
use perennial_core::time::Millis;

use super::memory::Reason;
use super::owed::Owed;
use super::{Host, HostMessage};

/// An actor idle for this long leaves memory, in milliseconds.
pub const IDLE_MS_MAX: u64 = 10 * 60 * 1000;
/// How often a host does its housekeeping.
pub(super) const SWEEP_PERIOD: Duration = Duration::from_secs(10);
/// Kept replies or sessions forgotten with one record.
const FORGET_MAX: usize = 1000;
/// Pause before more is forgotten, while nothing else waits for the log.
const FORGET_PAUSE: Duration = Duration::from_millis(10);
/// The same while something does.
const FORGET_PAUSE_BUSY: Duration = Duration::from_millis(50);

impl Host {
    /// Lets idle actors leave memory and forgets events and replies whose time is over, and dropped items.
    pub(super) fn sweep(&mut self) {
        self.let_leave(usize::MAX, Duration::from_millis(IDLE_MS_MAX), u64::MAX, Reason::Idle);
        self.sweep_events();
        if !self.forgets {
            self.forget();
        }
        self.tell_after(SWEEP_PERIOD, HostMessage::Sweep);
    }

    /// Forgets a bounded number of replies and items, and goes on after a pause while there are more.
    pub(super) fn forget(&mut self) {
        let pause = if self.owed.is_empty() { FORGET_PAUSE } else { FORGET_PAUSE_BUSY };
        self.forgets = self.forget_old(self.now()) | self.forget_items();
        if self.forgets {
            self.tell_after(pause, HostMessage::Forget);
        }
    }

    /// Forgets kept replies and sessions whose time is over; says whether there may be more of them.
    fn forget_old(&mut self, now: Millis) -> bool {
        if self.forgetting.is_some_and(|seq| seq >= self.applied) {
            // The rows still show what that record takes away.
            return true;
        }
        let silent = self.spec.dedup().silent(now, FORGET_MAX);
        let mut more = silent.len() == FORGET_MAX;
        if !silent.is_empty() {
            let size = silent.len() * 17;
            let seq = self.append(Record::SessionsForgotten(silent), size);
            self.owed.push_back(Owed::nothing(seq));
        }
        let (from, to) = rows::kept_before(now);
        if let Ok(found) = self.shared.rows.scan(self.group, &from, Some(&to), FORGET_MAX)
            && !found.is_empty()
        {
            more |= found.len() == FORGET_MAX;
            let keys: Vec<_> = found.iter().filter_map(|(key, _)| rows::read_kept_until(key)).collect();
            let size = keys.len() * 40;
            let seq = self.append(Record::KeysForgotten(keys), size);
            self.forgetting = Some(seq);
            self.owed.push_back(Owed::nothing(seq));
        }
        more
    }
}
