//! `reminder`: which reminders are set, and cancelling one.
//!
//! Owns the pages of a long list: it is asked for and printed a page at a time, so that neither this program
//! nor a node holds all of it.

use std::time::{SystemTime, UNIX_EPOCH};

use perennial::call::ActorId;
use perennial::core::time::Millis;
use perennial::limits::REMINDERS_TOLD_MAX;
use perennial::status::{Reminder, ReminderQuery};
use serde_json::json;

use super::Launch;
use super::target::Target;
use crate::cli::ReminderCommand;
use crate::exit::{CommandError, Exit};
use crate::output::{self, Output, table};
use crate::settings::Span;

/// A time, or a length of time from now on.
pub(crate) fn read_time(text: &str) -> Result<Millis, String> {
    if let Ok(span) = text.parse::<Span>() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Ok(Millis(u64::try_from((now + span.0).as_millis()).unwrap_or(u64::MAX)));
    }
    let at = text.parse::<jiff::Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
    at.map(Millis)
        .ok_or_else(|| format!("{text:?} is no time: write 2026-12-24T18:00:00Z, or 10m for from now on"))
}

/// A point in time for people.
fn shown(at: Millis) -> String {
    let at_ms = i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at_ms.map_or_else(|| format!("{} ms", at.0), |at| format!("{at:.3}"))
}

pub(crate) async fn run(launch: &Launch, what: ReminderCommand) -> Result<Exit, CommandError> {
    match what {
        ReminderCommand::Cancel { actor, name, target } => {
            let client = Target::of(&target, &launch.program)?.connect().await?;
            if client.cancel_reminder(actor.clone(), &name).await? {
                output::say(&format!("cancelled {name} of {actor}"));
                return Ok(Exit::Ok);
            }
            Err(CommandError::Failed(format!(
                "{actor} has no reminder {name:?}; `{} reminder list {actor}` shows those it has",
                launch.program
            )))
        }
        ReminderCommand::List { actor, due_before, limit, output, target } => {
            let client = Target::of(&target, &launch.program)?.connect().await?;
            let mut query = ReminderQuery { actor, due_before, after: None, limit: 0 };
            let mut left = limit;
            let mut told = 0_u64;
            loop {
                query.limit = left.min(REMINDERS_TOLD_MAX);
                let page = client.reminders(query.clone()).await?;
                left = left.saturating_sub(u32::try_from(page.reminders.len()).unwrap_or(u32::MAX));
                show(&page.reminders, told == 0, output);
                told += page.reminders.len() as u64;
                query.after =
                    page.reminders.last().map(|last| (last.due, last.actor.clone(), last.name.clone()));
                match (page.more, left, &query.after) {
                    (true, 0, _) => {
                        output::say(&format!("there are more than {limit}; --limit shows more of them"));
                        return Ok(Exit::Ok);
                    }
                    (true, _, Some(_)) => {}
                    _ => break,
                }
            }
            if told == 0 && output == Output::Text {
                output::say(&match &query.actor {
                    Some(actor) => format!("{actor} has no reminders"),
                    None => "no reminders are set".to_owned(),
                });
            }
            Ok(Exit::Ok)
        }
    }
}

/// One line of JSON for each, or a table for each page.
fn show(reminders: &[Reminder], first: bool, output: Output) {
    match output {
        Output::Json => reminders.iter().for_each(|reminder| output::data(&line(reminder))),
        Output::Text if reminders.is_empty() => {}
        Output::Text => output::data(&text(reminders, first)),
    }
}

fn line(reminder: &Reminder) -> String {
    let mut line = json!(reminder);
    line["due_at"] = json!(shown(reminder.due));
    line.to_string()
}

fn text(reminders: &[Reminder], first: bool) -> String {
    let header: &[&str] = if first { &["due", "actor", "name", "calls", "repeats"] } else { &[] };
    let mut rows = table(header);
    for reminder in reminders {
        rows.add_row([
            shown(reminder.due),
            reminder.actor.to_string(),
            reminder.name.clone(),
            calls(reminder, &reminder.actor),
            reminder.repeats.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    rows.trim_fmt()
}

fn calls(reminder: &Reminder, whose: &ActorId) -> String {
    if reminder.target == *whose {
        reminder.handler.clone()
    } else {
        format!("{}.{}", reminder.target, reminder.handler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_points_or_lengths() {
        assert_eq!(read_time("1970-01-01T00:01:00Z"), Ok(Millis(60_000)));
        assert_eq!(read_time("1970-01-01T02:00:00+01:00"), Ok(Millis(3_600_000)));
        assert!(read_time("10m").unwrap() > Millis(1_700_000_000_000));
        assert!(read_time("soon").unwrap_err().contains("soon"));
        assert!(read_time("1969-01-01T00:00:00Z").is_err());
        assert_eq!(shown(Millis(60_000)), "1970-01-01T00:01:00.000Z");
        assert_eq!(shown(Millis(u64::MAX)), format!("{} ms", u64::MAX));
    }

    #[test]
    fn the_text_names_whom_is_called_and_how_often() {
        let actor: ActorId = "Cart/alice".parse().unwrap();
        let own = Reminder {
            actor: actor.clone(),
            name: "abandoned".into(),
            due: Millis(60_000),
            target: actor.clone(),
            handler: "clear".into(),
            repeats: None,
            missed: None,
        };
        let target: ActorId = "Shop/main".parse().unwrap();
        let repeats = Some("every 10s".to_owned());
        let other = Reminder { target, name: "report".into(), repeats, ..own.clone() };
        let text = text(&[own.clone(), other], true);
        for part in
            ["Cart/alice", "1970-01-01T00:01:00.000Z", "abandoned", " clear", "Shop/main.clear", "every 10s"]
        {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let line: serde_json::Value = serde_json::from_str(&line(&own)).unwrap();
        assert_eq!((&line["actor"], &line["due"]), (&json!("Cart/alice"), &json!(60_000)));
        assert_eq!(line["due_at"], "1970-01-01T00:01:00.000Z");
    }
}
