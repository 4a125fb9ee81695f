//! The node's metrics, read from the counters of its parts when they are asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Inner;
use crate::host::memory::Reason;
use crate::host::workers::{PoolFigures, Workers};

/// Registers the node's metrics.
pub(super) fn register(inner: &Arc<Inner>) {
    let collector = Box::new(NodeCollector(Arc::downgrade(inner)));
    inner.registry.lock().unwrap_or_else(PoisonError::into_inner).register_collector(collector);
}

#[derive(Debug)]
struct NodeCollector(Weak<Inner>);

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(inner) = self.0.upgrade() else { return Ok(()) };
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let hosts = &inner.counters;
        let mut counts = vec![
            ("perennial_turns", "Turns recorded by partitions led here", of(&hosts.turns)),
            ("perennial_reads", "Reads run by partitions led here", of(&hosts.reads)),
            ("perennial_stale_reads", "Reads answered from rows that may be behind", of(&hosts.stale_reads)),
            ("perennial_turns_undone", "Turns undone by an error, a fault or a panic", of(&hosts.undone)),
            ("perennial_calls_repeated", "Calls answered from kept replies", of(&hosts.repeated)),
            ("perennial_calls_overloaded", "Calls refused because a line was full", of(&hosts.overloaded)),
            ("perennial_messages", "Messages between actors applied", of(&hosts.messages)),
            ("perennial_reminders", "Reminders fired", of(&hosts.reminders)),
            (
                "perennial_reminders_passed",
                "Due times of reminders that were missed and passed without a firing",
                of(&hosts.reminders_passed),
            ),
            ("perennial_timers", "Timers fired", of(&hosts.timers)),
            ("perennial_events", "Events published", of(&hosts.events)),
            ("perennial_events_handed", "Events handed to followers", of(&hosts.events_handed)),
            (
                "perennial_dead_letters_lost",
                "Dead letters gone because there were too many",
                of(&hosts.dead.lost),
            ),
            ("perennial_batches", "Batches proposed", of(&hosts.batches)),
            ("perennial_actors_new", "Actors without a state that calls woke", of(&hosts.new_actors)),
            (
                "perennial_actors_new_refused",
                "Calls refused because of too many new actors",
                of(&hosts.new_actors_refused),
            ),
        ];
        let memory = &hosts.memory;
        counts.push(("perennial_activations_made", "Actors that came into memory", memory.made()));
        let replica = inner.replica().map(|replica| replica.metrics());
        if let Some(replica) = &replica {
            counts.extend([
                ("perennial_log_flushes", "Flushes of the log", of(&replica.flushes)),
                (
                    "perennial_log_flush_nanoseconds",
                    "Time spent in flushes of the log",
                    of(&replica.flush_nanos),
                ),
                ("perennial_log_entries", "Entries appended to the log", of(&replica.entries)),
                ("perennial_log_bytes", "Bytes of entries appended to the log", of(&replica.log_bytes)),
                ("perennial_entries_applied", "Entries applied", of(&replica.applied)),
                ("perennial_row_operations", "Operations on rows", of(&replica.row_ops)),
                ("perennial_raft_messages_sent", "Raft messages sent", of(&replica.messages_sent)),
                (
                    "perennial_raft_messages_received",
                    "Raft messages received",
                    of(&replica.messages_received),
                ),
                (
                    "perennial_raft_messages_dropped",
                    "Raft messages dropped: full queue, or not readable",
                    of(&replica.messages_dropped),
                ),
                ("perennial_snapshots_sent", "Snapshots sent", of(&replica.snapshots_sent)),
                (
                    "perennial_snapshots_failed",
                    "Snapshots that were not sent whole",
                    of(&replica.snapshots_failed),
                ),
                (
                    "perennial_snapshots_unstaged",
                    "Snapshots given up because they could not be staged",
                    of(&replica.snapshots_unstaged),
                ),
                ("perennial_snapshots_installed", "Snapshots installed", of(&replica.snapshots_installed)),
                (
                    "perennial_proposals_refused",
                    "Proposals refused by a fence",
                    of(&replica.proposals_refused),
                ),
                ("perennial_checkpoints", "Checkpoints made", of(&replica.checkpoints)),
            ]);
        }
        for (name, help, value) in counts {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        if let Some(transport) = inner.transport.get() {
            let help = "Connections that this node closed, by reason";
            let mut family =
                encoder.encode_descriptor("perennial_connections_closed", help, None, MetricType::Counter)?;
            for (reason, count) in transport.closed() {
                let counter = ConstCounter::new(count);
                counter.encode(family.encode_family(&[("reason", reason.label())])?)?;
            }
        }
        let help = "Messages and reminders that became dead letters, by the code of the reason";
        let mut family =
            encoder.encode_descriptor("perennial_dead_letters_made", help, None, MetricType::Counter)?;
        for (reason, count) in hosts.dead.by_code() {
            let counter = ConstCounter::new(count);
            counter.encode(family.encode_family(&[("reason", reason)])?)?;
        }
        let help = "Actors that left memory, by reason";
        let mut family =
            encoder.encode_descriptor("perennial_passivations", help, None, MetricType::Counter)?;
        for reason in Reason::ALL {
            let counter = ConstCounter::new(memory.left(reason));
            counter.encode(family.encode_family(&[("reason", reason.label())])?)?;
        }
        let pools = inner.router.workers().map(Workers::figures).unwrap_or_default();
        type Count = fn(&PoolFigures) -> u64;
        let counters: [(&str, &str, Count); 2] = [
            ("perennial_worker_calls", "Calls that stateless workers began, by kind", |pool| pool.calls),
            ("perennial_worker_calls_refused", "Calls refused because a pool was full", |pool| pool.refused),
        ];
        for (name, help, value) in counters.into_iter().filter(|_| !pools.is_empty()) {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for pool in &pools {
                ConstCounter::new(value(pool)).encode(family.encode_family(&[("kind", pool.kind)])?)?;
            }
        }
        if !pools.is_empty() {
            let (name, help) = ("perennial_workers_running", "Stateless workers with a call, by kind");
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for pool in &pools {
                let running = ConstGauge::new(pool.running as i64);
                running.encode(family.encode_family(&[("kind", pool.kind)])?)?;
            }
        }
        let checks = inner.health.checks();
        if !checks.is_empty() {
            let help = "1 while a check of the application is well, by its name";
            let mut family =
                encoder.encode_descriptor("perennial_check_up", help, None, MetricType::Gauge)?;
            for check in checks {
                let up = ConstGauge::new(i64::from(check.up));
                up.encode(family.encode_family(&[("check", check.name.as_str())])?)?;
            }
        }
        let gauges = [
            ("perennial_dead_letters", "Dead letters kept by partitions led here", inner.hosts.dead()),
            ("perennial_partitions_led", "Partitions led here", inner.hosts.len() as u64),
            ("perennial_activations", "Actors in memory here", inner.hosts.resident()),
            ("perennial_actors_parked", "Actors here whose state cannot be read", inner.hosts.parked()),
            ("perennial_activation_bytes", "Memory that they take, by estimate", memory.used()),
            ("perennial_activation_bytes_max", "Memory that they may take", memory.budget()),
            (
                "perennial_ready",
                "1 when calls can be served from here",
                u64::from(super::status::ready(&inner).is_ok()),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
