//! `key`: an API key, shown once.

use serde::Serialize;

use crate::cli::KeyArgs;
use crate::exit::{CommandError, Exit};
use crate::gateway::NewKey;
use crate::output::{self, Output};

/// A key as programs read it.
#[derive(Serialize)]
struct Made<'a> {
    name: &'a str,
    key: &'a str,
    sha256: &'a str,
    groups: &'a [String],
}

pub(crate) fn run(args: &KeyArgs) -> Result<Exit, CommandError> {
    let made = NewKey::make(&args.name).map_err(|error| CommandError::Usage(error.to_string()))?;
    match args.output {
        Output::Json => output::json(&Made {
            name: &args.name,
            key: &made.key,
            sha256: &made.sha256,
            groups: &args.group,
        }),
        Output::Text => {
            output::data(&made.key);
            let groups =
                if args.group.is_empty() { String::new() } else { format!("\ngroups = {:?}", args.group) };
            output::say(&format!(
                "this key is kept nowhere; for the policy file (--auth):\n\n[[key]]\nname = {:?}\nsha256 = {:?}{groups}",
                args.name, made.sha256
            ));
        }
    }
    Ok(Exit::Ok)
}
