//! What fuzzing needs of the node's insides.

use perennial_core::id::{LogIndex, Term};
use perennial_core::replication::StateMachine;

use super::system::SystemMachine;

/// Restores the system partition from bytes and applies the same bytes as an entry.
pub(crate) fn restore_system(bytes: &[u8]) {
    let mut machine = SystemMachine::for_fuzzing();
    machine.apply(Term(1), LogIndex(1), bytes, &mut Vec::new());
    if machine.restore(bytes).is_ok() {
        let again = machine.checkpoint();
        let mut other = SystemMachine::for_fuzzing();
        assert!(other.restore(&again).is_ok(), "a checkpoint can be restored");
        assert_eq!(other.checkpoint(), again, "a checkpoint lost something");
        machine.apply(Term(1), LogIndex(1), bytes, &mut Vec::new());
    }
}

pub(crate) fn system_seed() -> Vec<u8> {
    SystemMachine::for_fuzzing().checkpoint()
}
