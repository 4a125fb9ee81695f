//! What node processes on this machine use: CPU, memory, flushes of the log.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use perennial::core::id::NodeId;
use procfs::process::Process;
use serde::Serialize;

use crate::harness::{ClusterFile, NodeEntry};

/// The counter of a node's metrics that counts flushes of its log.
const FLUSHES_METRIC: &str = "perennial_log_flushes_total";
/// How long a node may take to tell its metrics.
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);

/// What was used over a stretch of time.
#[derive(Debug)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    /// CPU of this process, in percent of one core.
    pub(super) own_cpu_percent: f64,
    pub(super) nodes: Vec<NodeCost>,
}

/// What one node used; `None` where it could not be seen, as with nodes elsewhere.
#[derive(Debug, Serialize)]
pub(super) struct NodeCost {
    pub(super) node: NodeId,
    pub(super) pid: Option<u32>,
    /// In percent of one core.
    pub(super) cpu_percent: Option<f64>,
    /// Resident memory at the end.
    pub(super) rss_bytes: Option<u64>,
    pub(super) flushes_per_s: Option<f64>,
}

/// Remembers the start of a stretch.
pub(super) struct Sampler {
    nodes: Vec<NodeEntry>,
    http: reqwest::Client,
    start: Sample,
}

struct Sample {
    at: Instant,
    own_ticks: u64,
    nodes: Vec<NodeSample>,
}

struct NodeSample {
    ticks: Option<u64>,
    rss_bytes: Option<u64>,
    flushes: Option<f64>,
}

impl Sampler {
    pub(super) async fn new(file: &ClusterFile) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(METRICS_TIMEOUT)
            .build()
            .expect("a client without TLS has nothing to load");
        let nodes = file.nodes.clone();
        let start = Sample::take(&nodes, &http).await;
        Self { nodes, http, start }
    }

    pub(super) fn rss_at_start(&self) -> Vec<Option<u64>> {
        self.start.nodes.iter().map(|node| node.rss_bytes).collect()
    }

    pub(super) async fn since_start(&mut self) -> Cost {
        let end = Sample::take(&self.nodes, &self.http).await;
        let seconds = end.at.duration_since(self.start.at).as_secs_f64();
        let percent = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64 / seconds * 100.0;
        let nodes = self
            .nodes
            .iter()
            .zip(self.start.nodes.iter().zip(&end.nodes))
            .map(|(entry, (before, after))| NodeCost {
                node: entry.id.clone(),
                pid: entry.pid,
                cpu_percent: both(before.ticks, after.ticks).map(|(b, a)| percent(a.saturating_sub(b))),
                rss_bytes: after.rss_bytes,
                flushes_per_s: both(before.flushes, after.flushes).map(|(b, a)| (a - b) / seconds),
            })
            .collect();
        let own_cpu_percent = percent(end.own_ticks.saturating_sub(self.start.own_ticks));
        Cost { seconds, own_cpu_percent, nodes }
    }
}

fn both<T>(before: Option<T>, after: Option<T>) -> Option<(T, T)> {
    before.zip(after)
}

impl Sample {
    async fn take(nodes: &[NodeEntry], http: &reqwest::Client) -> Self {
        let flushes = join_all(nodes.iter().map(|node| flushes(http, &node.http))).await;
        let own = used(std::process::id());
        let nodes = nodes.iter().zip(flushes).map(|(node, flushes)| {
            let used = node.pid.and_then(used);
            NodeSample { ticks: used.map(|(ticks, _)| ticks), rss_bytes: used.map(|(_, rss)| rss), flushes }
        });
        Self { at: Instant::now(), own_ticks: own.map_or(0, |(ticks, _)| ticks), nodes: nodes.collect() }
    }
}

/// Ticks of CPU used so far and resident bytes of a process.
fn used(pid: u32) -> Option<(u64, u64)> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some((stat.utime + stat.stime, stat.rss * procfs::page_size()))
}

async fn flushes(http: &reqwest::Client, address: &str) -> Option<f64> {
    let answer = http.get(format!("http://{address}/metrics")).send().await.ok()?;
    metric(&answer.text().await.ok()?, FLUSHES_METRIC)
}

/// Sum of a metric's samples in Prometheus' text format.
fn metric(text: &str, name: &str) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.split_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_its_samples() {
        let text = "# TYPE a_total counter\na_total{g=\"1\"} 3\na_total{g=\"2\"} 4.5\na_total_more 9\nb 1\n";
        assert_eq!(metric(text, "a_total"), Some(7.5));
        assert_eq!(metric(text, "b"), Some(1.0));
        assert_eq!(metric(text, "c"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(used(std::process::id()).unwrap().1 > 0);
    }
}
