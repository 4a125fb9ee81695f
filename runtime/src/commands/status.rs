//! `status`: members, leaders and replicas as the cluster tells them.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::Duration;

use anstyle::AnsiColor;
use comfy_table::{Cell, Color};
use perennial::status::{ClusterStatus, PartitionStatus};

use super::target::Target;
use super::{Interrupts, Launch};
use crate::cli::StatusArgs;
use crate::exit::{CommandError, Exit};
use crate::output::{self, Output, paint, table};

/// Pause between two looks.
const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(crate) async fn run(launch: &Launch, args: StatusArgs) -> Result<Exit, CommandError> {
    let client = Target::of(&args.target, &launch.program)?.connect().await?;
    if !args.watch {
        show(&client.status().await?, &args);
        return Ok(Exit::Ok);
    }
    let mut interrupts = Interrupts::new()?;
    loop {
        let look = async {
            let status = client.status().await;
            if args.output == Output::Text && std::io::stdout().is_terminal() {
                output::data(CLEAR);
            }
            match status {
                Ok(status) => show(&status, &args),
                // A cluster that is away for a moment is what one watches for.
                Err(fault) => output::warn(&fault.to_string()),
            }
            tokio::time::sleep(WATCH_PERIOD).await;
        };
        tokio::select! {
            () = look => {}
            () = interrupts.next() => return Ok(Exit::Ok),
        }
    }
}

fn show(status: &ClusterStatus, args: &StatusArgs) {
    match args.output {
        Output::Json if args.watch => output::data(&serde_json::json!(status).to_string()),
        Output::Json => output::json(status),
        Output::Text => output::data(&text(status, args.partitions)),
    }
}

fn text(status: &ClusterStatus, partitions: bool) -> String {
    let mut text = match &status.cluster {
        Some(cluster) => format!("{} in cluster {cluster}, as {} sees it", status.app, status.node),
        None => format!("{}, not formed yet, as {} sees it", status.app, status.node),
    };
    let builds: BTreeSet<_> = status.members.iter().map(|member| &member.build).collect();
    if builds.len() > 1 {
        let told = "the builds differ: states of the newer ones are served by nodes that run them";
        text += &format!("\n{}", paint(told, AnsiColor::Yellow));
    }
    if let Some(waits) = &status.waiting_for {
        text += &format!("\n{}", paint(waits, AnsiColor::Yellow));
    }
    for check in &status.checks {
        text += "\n";
        text += &match &check.why {
            None => format!("check {} is well", check.name),
            Some(why) => paint(&format!("check {} fails: {why}", check.name), AnsiColor::Red),
        };
    }
    let mut members =
        table(&["node", "up", "address", "http", "zone", "#leads", "#replicas", "#starts", "build"]);
    for member in &status.members {
        let up = if member.up { Cell::new("up").fg(Color::Green) } else { Cell::new("down").fg(Color::Red) };
        members.add_row([
            Cell::new(&member.node),
            up,
            Cell::new(&member.address),
            Cell::new(member.http.as_deref().unwrap_or("-")),
            Cell::new(member.zone.as_deref().unwrap_or("-")),
            Cell::new(member.leads),
            Cell::new(member.replicas),
            Cell::new(member.incarnation),
            Cell::new(&member.build[..member.build.len().min(8)]),
        ]);
    }
    text += &format!("\n{}\n{}", members.trim_fmt(), summary(&status.partitions));
    if partitions {
        let mut rows =
            table(&["#partition", "leader", "#term", "#commit", "#activations", "replicas (behind)"]);
        for partition in &status.partitions {
            rows.add_row([
                partition.partition.to_string(),
                partition.leader.as_ref().map_or_else(|| "none".into(), ToString::to_string),
                partition.term.to_string(),
                partition.commit.to_string(),
                partition.activations.to_string(),
                replicas(partition),
            ]);
        }
        text += &format!("\n{}", rows.trim_fmt());
    }
    text
}

fn summary(partitions: &[PartitionStatus]) -> String {
    let led = partitions.iter().filter(|p| p.leader.is_some()).count();
    let activations: u64 = partitions.iter().map(|p| p.activations).sum();
    let lags = || partitions.iter().flat_map(|p| &p.replicas).map(|replica| replica.lag);
    let behind = lags().flatten().max().unwrap_or(0);
    let unknown = lags().filter(Option::is_none).count();
    let leaderless = partitions.len() - led;
    let mut text = format!(
        "{} partitions, {leaderless} without a leader; replicas at most {behind} entries behind",
        partitions.len()
    );
    if unknown > 0 {
        text += &format!(", {unknown} not known");
    }
    text += &format!("; {activations} activations");
    let parked: u64 = partitions.iter().map(|p| p.parked).sum();
    if parked > 0 {
        let told = format!("{parked} actors are parked: their state cannot be read, see the logs");
        text += &format!("\n{}", paint(&told, AnsiColor::Red));
    }
    text
}

fn replicas(partition: &PartitionStatus) -> String {
    let shown = partition.replicas.iter().map(|replica| match replica.lag {
        Some(0) => replica.node.to_string(),
        Some(lag) => format!("{} (-{lag})", replica.node),
        None => format!("{} (?)", replica.node),
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use perennial::core::id::{MemberId, NodeId, PartitionId};
    use perennial::status::{CheckStatus, MemberStatus, ReplicaStatus};

    use super::*;

    #[test]
    fn the_text_names_members_leaders_and_lags() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let member = MemberStatus {
            member: MemberId(1),
            node: node("n1"),
            address: "127.0.0.1:7001".into(),
            http: None,
            zone: None,
            up: true,
            leads: 1,
            replicas: 2,
            incarnation: 3,
            build: "00000000000000b1".into(),
        };
        let replica = |name: &str, lag| ReplicaStatus { node: node(name), lag };
        let partition = PartitionStatus {
            partition: PartitionId(7),
            leader: Some(node("n1")),
            term: 4,
            commit: 900,
            replicas: vec![replica("n1", Some(0)), replica("n2", Some(12)), replica("n3", None)],
            activations: 5,
            parked: 2,
        };
        let leaderless = PartitionStatus { leader: None, replicas: Vec::new(), ..partition.clone() };
        let status = ClusterStatus {
            node: node("n1"),
            app: "shop".into(),
            cluster: Some("c0ffee".into()),
            epoch: None,
            waiting_for: Some("waiting for 1 more node".into()),
            members: vec![MemberStatus { build: "00000000000000b2".into(), ..member.clone() }, member],
            partitions: vec![partition, leaderless],
            checks: vec![
                CheckStatus { name: "mail".into(), up: true, why: None },
                CheckStatus { name: "bank".into(), up: false, why: Some("no route".into()) },
            ],
        };
        let text = anstream::adapter::strip_str(&text(&status, true)).to_string();
        for part in [
            "c0ffee",
            "waiting for 1 more node",
            "127.0.0.1:7001",
            "2 partitions, 1 without a leader",
            "at most 12 entries behind, 1 not known",
            "n1 n2 (-12) n3 (?)",
            "10 activations",
            "4 actors are parked",
            "builds differ",
            "none",
            "check mail is well",
            "check bank fails: no route",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
