//! `dead`: messages and reminders that could not be applied; shown, sent again, dropped.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use perennial::Fault;
use perennial::core::id::PartitionId;
use perennial::dead::{DeadFilter, DeadId, DeadIdError, DeadLetter, DeadLetters, DeadList};
use serde_json::json;

use super::Launch;
use super::target::Target;
use crate::cli::{DeadArgs, DeadCommand};
use crate::exit::{CommandError, Exit};
use crate::output::{self, Output, table};

/// Dead letters listed unless told otherwise.
pub(crate) const LISTED_DEFAULT: usize = 50;
/// Longest reason in a table, in characters.
const WHY_SHOWN_MAX: usize = 60;

pub(crate) async fn run(launch: &Launch, args: DeadArgs) -> Result<Exit, CommandError> {
    // Mistakes first, without a cluster.
    let asked = match &args.what {
        DeadCommand::Retry { which, all: true, .. } if which.len() > 1 => {
            return Err(CommandError::Usage(
                "--all takes one kind or actor at most, as KIND or KIND/KEY".into(),
            ));
        }
        DeadCommand::Retry { which, all: true, .. } => Asked::All(filter(which.first())),
        DeadCommand::Retry { which, .. } => {
            let ids = which.iter().map(|id| id.parse()).collect::<Result<_, DeadIdError>>();
            Asked::Ids(ids.map_err(|error| CommandError::Usage(error.to_string()))?)
        }
        DeadCommand::Drop { ids, .. } => Asked::Ids(ids.clone()),
        DeadCommand::List { .. } | DeadCommand::Show { .. } => Asked::Ids(Vec::new()),
    };
    let client = Target::of(args.what.target(), &launch.program)?.connect().await?;
    let dead = client.dead_letters();
    match args.what {
        DeadCommand::List { which, limit, output, .. } => {
            let list = dead.list(&filter(which.as_ref()), limit).await;
            match output {
                Output::Json => output::json(&list),
                Output::Text => output::data(&text(&list, SystemTime::now())),
            }
            Ok(complete(&list))
        }
        DeadCommand::Show { id, output, .. } => {
            let letter = dead.show(id).await?;
            match output {
                Output::Json => output::json(&letter),
                Output::Text => output::data(&whole(&letter, SystemTime::now())),
            }
            Ok(Exit::Ok)
        }
        DeadCommand::Retry { output, .. } => take(&dead, asked, true, output).await,
        DeadCommand::Drop { output, .. } => take(&dead, asked, false, output).await,
    }
}

/// Which letters to take off the list.
enum Asked {
    Ids(Vec<DeadId>),
    All(DeadFilter),
}

fn filter(which: Option<&String>) -> DeadFilter {
    match which.map(|which| which.parse()) {
        Some(Ok(filter)) => filter,
        None => DeadFilter::default(),
    }
}

/// Sends letters again or drops them: those of a partition in their order, partitions side by side. Those
/// that are gone or cannot be had are told; the others go on.
async fn take(dead: &DeadLetters, asked: Asked, again: bool, output: Output) -> Result<Exit, CommandError> {
    let mut exit = Exit::Ok;
    let mut by_partition: BTreeMap<PartitionId, Vec<DeadId>> = BTreeMap::new();
    let listed = match asked {
        Asked::All(filter) => {
            let list = dead.list(&filter, usize::MAX).await;
            exit = complete(&list);
            list.letters.into_iter().map(|letter| letter.id).collect()
        }
        Asked::Ids(ids) => ids,
    };
    for id in listed {
        by_partition.entry(id.partition).or_default().push(id);
    }
    let partitions = by_partition.into_values().map(async |mut ids| {
        let mut outcomes = Vec::new();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let outcome = if again { dead.retry(id).await } else { dead.drop(id).await };
            outcomes.push((id, outcome));
        }
        outcomes
    });
    let outcomes = futures_util::future::join_all(partitions).await;
    let (mut done, mut failed) = (Vec::new(), Vec::<(DeadId, Fault)>::new());
    for (id, outcome) in outcomes.into_iter().flatten() {
        match outcome {
            Ok(()) => done.push(id),
            Err(fault) => failed.push((id, fault)),
        }
    }
    let verb = if again { "retried" } else { "dropped" };
    match output {
        Output::Json => {
            let failures: Vec<_> = failed
                .iter()
                .map(|(id, fault)| json!({ "id": id, "code": fault.code(), "message": fault.to_string() }))
                .collect();
            output::json(&json!({ verb: done, "failed": failures }));
        }
        Output::Text => {
            output::data(&format!("{} {verb}", done.len()));
            failed.iter().for_each(|(id, fault)| output::warn(&format!("{id}: {fault}")));
        }
    }
    Ok(if failed.is_empty() { exit } else { Exit::Failed })
}

/// Tells which partitions did not answer.
fn complete(list: &DeadList) -> Exit {
    for (partition, why) in &list.unanswered {
        output::warn(&format!("partition {partition} did not answer: {why}"));
    }
    if list.unanswered.is_empty() { Exit::Ok } else { Exit::Failed }
}

fn text(list: &DeadList, now: SystemTime) -> String {
    let mut rows = table(&["id", "when", "from", "to", "handler", "code", "why", "#tries"]);
    for letter in &list.letters {
        rows.add_row([
            letter.id.to_string(),
            ago(letter.at, now),
            sender(letter),
            letter.target.to_string(),
            letter.method.clone(),
            letter.code.clone(),
            shortened(&letter.why),
            letter.tries.to_string(),
        ]);
    }
    let mut text = if list.letters.is_empty() { String::new() } else { format!("{}\n", rows.trim_fmt()) };
    text += &format!("{} shown, {} kept", list.letters.len(), list.kept);
    if list.lost > 0 {
        text += &format!(", {} lost because there were too many", list.lost);
    }
    text
}

fn whole(letter: &DeadLetter, now: SystemTime) -> String {
    let args = match &letter.args {
        Some(args) => serde_json::to_string_pretty(args).expect("a JSON value is JSON"),
        None => format!("{} bytes that this cluster's build cannot show", letter.args_bytes),
    };
    format!(
        "{}, given up {} after {} tries\nfrom     {}\nto       {}\nhandler  {}\nwhy      {}: {}\nwith     {args}",
        letter.id,
        ago(letter.at, now),
        letter.tries,
        sender(letter),
        letter.target,
        letter.method,
        letter.code,
        letter.why,
    )
}

fn sender(letter: &DeadLetter) -> String {
    match &letter.reminder {
        Some(name) => format!("reminder {name:?}"),
        None => letter.sender.to_string(),
    }
}

fn shortened(why: &str) -> String {
    match why.char_indices().nth(WHY_SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &why[..end]),
        None => why.to_owned(),
    }
}

/// `12 min ago`.
fn ago(at_ms: u64, now: SystemTime) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
    match now.duration_since(at).unwrap_or_default().as_secs() {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: "17-3".parse().unwrap(),
            at: 1_000_000,
            sender: "Cart/alice".parse().unwrap(),
            reminder: None,
            target: "Stock/tea".parse().unwrap(),
            method: "release".into(),
            code: "app".into(),
            why: "x".repeat(100),
            tries: 1,
            args_bytes: 1,
            args: None,
        }
    }

    #[test]
    fn the_list_has_all_one_needs_to_decide() {
        let list = DeadList { letters: vec![letter()], kept: 5, lost: 2, unanswered: Vec::new() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600);
        let text = text(&list, now);
        for part in
            ["17-3", "10 min ago", "Cart/alice", "Stock/tea", "release", "xxx…", "1 shown, 5 kept, 2 lost"]
        {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let none = super::text(&DeadList::default(), now);
        assert_eq!(none, "0 shown, 0 kept");
    }

    #[test]
    fn a_letter_is_shown_with_its_arguments() {
        let args = Some(json!({ "qty": 3 }));
        let reminder = Some("later".to_owned());
        let text = whole(&DeadLetter { args, reminder, ..letter() }, SystemTime::UNIX_EPOCH);
        for part in ["17-3", "\"qty\": 3", "reminder \"later\"", "app: xxx", "0 s ago"] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(whole(&letter(), SystemTime::UNIX_EPOCH).contains("1 bytes that"));
    }
}
