//! A real browser, driven over WebDriver: shared by the tests of the pages.
//!
//! Needs `chromium` and `chromedriver` on the PATH.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long the page may take to come to something it must come to.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Where the driver says which port it took.
const DRIVER_READY: &str = "started successfully on port ";

/// Whether there are browsers; says loudly that `page` is not tested when there are none.
pub(crate) fn available(page: &str) -> bool {
    let there = on_path("chromium") && on_path("chromedriver");
    if !there {
        eprintln!("SKIPPED: chromium and chromedriver are not on the PATH, {page} was NOT tested");
    }
    there
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A running chromedriver; dies with the value.
pub(crate) struct Driver {
    url: String,
    _process: Child,
}

impl Driver {
    /// Starts one on a free port.
    pub(crate) async fn start() -> Self {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, port)) = line.split_once(DRIVER_READY) {
                let url = format!("http://127.0.0.1:{}", port.trim().trim_end_matches('.'));
                return Self { url, _process: process };
            }
        }
        panic!("chromedriver ended without naming its port");
    }

    /// Opens a window.
    pub(crate) async fn browser(&self) -> Browser {
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--window-size=1000,700",
        ];
        let wanted = json!({
            "browserName": "chrome",
            "timeouts": { "script": PATIENCE.as_millis() as u64 },
            "goog:chromeOptions": { "args": args },
        });
        let body = json!({ "capabilities": { "alwaysMatch": wanted } });
        let answer = post(&format!("{}/session", self.url), &body).await;
        let id = answer["sessionId"].as_str().expect("a session has an id").to_owned();
        Browser { url: format!("{}/session/{id}", self.url) }
    }
}

/// A browser window, driven over WebDriver.
#[derive(Clone)]
pub(crate) struct Browser {
    url: String,
}

impl Browser {
    /// Goes to a page.
    pub(crate) async fn open(&self, page: &str) {
        post(&format!("{}/url", self.url), &json!({ "url": page })).await;
    }

    /// Runs a script in the page; gives what it returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        post(&format!("{}/execute/sync", self.url), &json!({ "script": script, "args": [] })).await
    }

    /// The text an expression has in the page.
    pub(crate) async fn text(&self, expression: &str) -> String {
        let value = self.run(&format!("return {expression}")).await;
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}, not a text")).to_owned()
    }

    /// Waits in the page until the expression is true; the script time-out ends it with an error.
    pub(crate) async fn until(&self, expression: &str) {
        let script = format!(
            "const done = arguments[0];
             const look = () => ({expression}) ? done() : setTimeout(look, 20);
             look();"
        );
        let body = json!({ "script": script, "args": [] });
        let answer = request(&format!("{}/execute/async", self.url), &body).await;
        if let Err(error) = answer {
            let page = self.run("return document.body.innerText").await;
            panic!("the page never came to: {expression}\n{error}\nit shows: {page}");
        }
    }

    /// Closes the window.
    pub(crate) async fn quit(&self) {
        reqwest::Client::new().delete(&self.url).send().await.unwrap();
    }
}

async fn post(url: &str, body: &Value) -> Value {
    request(url, body).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

async fn request(url: &str, body: &Value) -> Result<Value, Value> {
    let response = reqwest::Client::new().post(url).json(body).send().await.unwrap();
    let ok = response.status().is_success();
    let mut answer: Value = response.json().await.unwrap();
    let value = answer["value"].take();
    if ok { Ok(value) } else { Err(value) }
}
