//! Reminders: how fast they are set, what they cost while they wait, how fast and how late they fire.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use perennial::{Actors, Client};
use serde::Serialize;

use super::cost::{Cost, Sampler};
use super::{Report, Subject, report};
use crate::cli::BenchArgs;
use crate::clocks::{Clock, SET_MAX, longest};
use crate::counter::CALL_TIMEOUT;
use crate::exit::CommandError;
use crate::output::Progress;

/// Reminders set per second that the begin of the firing is planned for; setting them waits for none.
const SET_PER_SECOND: u64 = 10_000;
/// Time between the last one set, as planned, and the first one due.
const LEAD: Duration = Duration::from_secs(5);
/// How long after the last due time all must have fired.
const FIRED_WITHIN: Duration = Duration::from_secs(300);
/// How often it is looked how many have.
const LOOK: Duration = Duration::from_millis(500);

/// What reminders showed.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) timers: u64,
    pub(super) set_per_s: f64,
    /// Seconds over which their due times are spread.
    pub(super) spread_s: u32,
    pub(super) fired: u64,
    /// From the first due time until all had fired.
    pub(super) fired_per_s: f64,
    /// Of the turn's begin behind the due time; at most.
    pub(super) late_p50_ms: u64,
    pub(super) late_p99_ms: u64,
    pub(super) late_max_ms: u64,
    /// Memory of the nodes before any was set, and with all of them waiting.
    pub(super) rss_before_bytes: Vec<Option<u64>>,
    pub(super) rss_waiting_bytes: Vec<Option<u64>>,
}

pub(super) async fn run(
    args: &BenchArgs,
    subject: &Subject,
    progress: &mut Progress,
) -> Result<Report, CommandError> {
    let clocks = u64::from(args.keys).min(u64::from(args.timers)).max(1);
    let each = u32::try_from(u64::from(args.timers).div_ceil(clocks)).unwrap_or(u32::MAX);
    let timers = clocks * u64::from(each);
    let lead = Duration::from_secs(timers / SET_PER_SECOND) + LEAD;
    let from_ms = now_ms() + u64::try_from(lead.as_millis()).unwrap_or(u64::MAX);
    let apart_micros = u64::from(args.seconds) * 1_000_000 / u64::from(each);
    progress.state(&format!("setting {timers} reminders of {clocks} actors"));
    let mut sampler = Sampler::new(&subject.file).await;
    let started = Instant::now();
    let calls =
        (0..clocks).flat_map(|clock| (0..each).step_by(SET_MAX as usize).map(move |first| (clock, first)));
    let failed = Arc::new(AtomicU64::new(0));
    futures_util::stream::iter(calls)
        .for_each_concurrent(args.clients as usize, |(clock, first)| {
            let client = subject.clients[clock as usize % subject.clients.len()].clone();
            let failed = failed.clone();
            async move {
                let count = (each - first).min(SET_MAX);
                let from = from_ms + u64::from(first) * apart_micros / 1000;
                let set = name(&client, clock).set(first, count, from, apart_micros).timeout(CALL_TIMEOUT);
                if set.await.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
        .await;
    let set_in = started.elapsed();
    let failed = failed.load(Ordering::Relaxed);
    if failed > 0 {
        return Err(CommandError::Failed(format!("{failed} calls that set reminders failed")));
    }
    let waiting: Vec<_> = sampler.since_start().await.nodes.iter().map(|node| node.rss_bytes).collect();
    if now_ms() > from_ms {
        progress.line("the first reminders were due before the last were set: lateness has that in it");
    }
    progress.state("waiting until the first is due");
    tokio::time::sleep(Duration::from_millis(from_ms.saturating_sub(now_ms()))).await;
    let rss_before_bytes = sampler.rss_at_start();
    let mut sampler = Sampler::new(&subject.file).await;
    let begun = Instant::now();
    let spread = Duration::from_secs(args.seconds.into());
    let mut fired;
    loop {
        tokio::time::sleep(LOOK).await;
        if begun.elapsed() < spread {
            continue;
        }
        fired = collect(&subject.clients, clocks).await;
        progress.state(&format!("{} of {timers} have fired", fired.0));
        if fired.0 >= timers || begun.elapsed() > spread + FIRED_WITHIN {
            break;
        }
    }
    let took = begun.elapsed();
    let cost: Cost = sampler.since_start().await;
    let (fired, late) = fired;
    let figures = Figures {
        timers,
        set_per_s: timers as f64 / set_in.as_secs_f64(),
        spread_s: args.seconds,
        fired,
        fired_per_s: fired as f64 / took.as_secs_f64(),
        late_p50_ms: share(&late, fired, 50),
        late_p99_ms: share(&late, fired, 99),
        late_max_ms: share(&late, fired, 100),
        rss_before_bytes,
        rss_waiting_bytes: waiting,
    };
    let keys = u32::try_from(clocks).unwrap_or(u32::MAX);
    Ok(Report { timers: Some(figures), keys, ..report("timer", args, cost) })
}

fn name(client: &Client, clock: u64) -> <Clock as perennial::Actor>::Ref {
    client.get::<Clock>(format!("bench-{clock}"))
}

/// How many have fired by now, and how late.
async fn collect(clients: &[Client], clocks: u64) -> (u64, Vec<u64>) {
    let asked = futures_util::stream::iter(0..clocks).map(|clock| {
        let client = clients[clock as usize % clients.len()].clone();
        async move { name(&client, clock).fired().timeout(CALL_TIMEOUT).await.unwrap_or_default() }
    });
    let add = |(mut sum, mut all): (u64, Vec<u64>), (fired, late): (u64, Vec<u32>)| {
        sum += fired;
        all.resize(all.len().max(late.len()), 0);
        all.iter_mut().zip(&late).for_each(|(all, late)| *all += u64::from(*late));
        async move { (sum, all) }
    };
    asked.buffer_unordered(256).fold((0, Vec::new()), add).await
}

/// The lateness that so many percent stay within.
fn share(late: &[u64], of: u64, percent: u64) -> u64 {
    let mut left = (of * percent).div_ceil(100);
    for (bucket, count) in late.iter().enumerate() {
        if left <= *count {
            return longest(bucket);
        }
        left -= count;
    }
    0
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
