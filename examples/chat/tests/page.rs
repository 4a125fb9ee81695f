//! The chat page in two real browsers, over the death of the node that serves one of them.
//!
//! Needs `chromium` and `chromedriver` on the PATH and says loudly when it is skipped for want of them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use perennial_runtime::harness::{ClusterSpec, ProcessCluster};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long the page may take to come to something it must come to.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the driver says which port it took.
const DRIVER_READY: &str = "started successfully on port ";

const LIVE: &str = "document.getElementById('state').dataset.state === 'live'";
const TEXTS: &str = "[...document.querySelectorAll('#log .bubble')].map(e => e.textContent)";

#[tokio::test(flavor = "multi_thread")]
async fn two_browsers_miss_nothing_when_a_node_dies() {
    if !on_path("chromium") || !on_path("chromedriver") {
        eprintln!("SKIPPED: chromium and chromedriver are not on the PATH, the chat page was NOT tested");
        return;
    }
    let driver = Driver::start().await;
    let (ann, bo) = (driver.browser().await, driver.browser().await);
    // In a task of its own, so that a failed assertion does not leave browsers behind.
    let outcome = tokio::spawn(scenario(ann.clone(), bo.clone())).await;
    ann.quit().await;
    bo.quit().await;
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

async fn scenario(ann: Browser, bo: Browser) {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = start_cluster(dir.path()).await;
    let http = cluster.http();
    enter(&ann, &http[0], "Ann").await;
    enter(&bo, &http[1], "Bo <b>").await;

    say(&ann, "hello").await;
    say(&bo, "<i>markup</i> stays text & so does <script>").await;
    both_show(&ann, &bo, 2).await;
    ann.until("document.querySelectorAll('#members li').length === 2").await;
    ann.until("document.querySelector('.mine .mark').textContent.includes('answered by n')").await;

    let served_by = ann.text("document.getElementById('state').textContent").await;
    cluster.kill9(0).await;
    for n in 0..3 {
        say(&ann, &format!("ann during the failover {n}")).await;
        say(&bo, &format!("bo during the failover {n}")).await;
    }
    both_show(&ann, &bo, 8).await;
    ann.until(&format!("{LIVE} && document.getElementById('state').textContent !== {}", json!(served_by)))
        .await;

    let texts = ann.texts().await;
    assert_eq!(texts, bo.texts().await, "both read the same room");
    for who in ["ann", "bo"] {
        let said: Vec<_> = texts.iter().filter(|text| text.starts_with(who)).collect();
        let expected: Vec<_> = (0..3).map(|n| format!("{who} during the failover {n}")).collect();
        assert_eq!(said, expected.iter().collect::<Vec<_>>(), "each message once, in the order of speaking");
    }
    assert!(texts.contains(&"<i>markup</i> stays text & so does <script>".to_owned()));

    ann.run("document.getElementById('leave').click()").await;
    bo.until("document.querySelectorAll('#members li').length === 1").await;
    cluster.stop(Duration::from_secs(5)).await;
}

/// Three nodes of this example, each with a gateway.
async fn start_cluster(dir: &Path) -> ProcessCluster {
    let spec = ClusterSpec::new(3, dir, env!("CARGO_BIN_EXE_chat"));
    let mut cluster = ProcessCluster::start(spec).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    cluster
}

async fn enter(browser: &Browser, gateway: &str, name: &str) {
    let origin = if gateway.contains("://") { gateway.to_owned() } else { format!("http://{gateway}") };
    browser.open(&format!("{origin}/chat/")).await;
    browser.until("document.getElementById('name')").await;
    let join = "document.querySelector('#join button').click()";
    browser.run(&format!("document.getElementById('name').value = {}; {join}", json!(name))).await;
    browser.until(&format!("!document.getElementById('inside').hidden && {LIVE}")).await;
}

async fn say(browser: &Browser, text: &str) {
    let send = "document.querySelector('#say button').click()";
    browser.run(&format!("document.getElementById('text').value = {}; {send}", json!(text))).await;
}

async fn both_show(ann: &Browser, bo: &Browser, messages: usize) {
    for browser in [ann, bo] {
        browser.until(&format!("{TEXTS}.length === {messages} && !document.querySelector('.pending')")).await;
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A running chromedriver; dies with the value.
struct Driver {
    url: String,
    _process: Child,
}

impl Driver {
    async fn start() -> Self {
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

    async fn browser(&self) -> Browser {
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
struct Browser {
    url: String,
}

impl Browser {
    async fn open(&self, page: &str) {
        post(&format!("{}/url", self.url), &json!({ "url": page })).await;
    }

    async fn run(&self, script: &str) -> Value {
        post(&format!("{}/execute/sync", self.url), &json!({ "script": script, "args": [] })).await
    }

    async fn text(&self, expression: &str) -> String {
        let value = self.run(&format!("return {expression}")).await;
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}, not a text")).to_owned()
    }

    async fn texts(&self) -> Vec<String> {
        serde_json::from_value(self.run(&format!("return {TEXTS}")).await).unwrap()
    }

    /// Waits in the page until the expression is true; the script time-out ends it with an error.
    async fn until(&self, expression: &str) {
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

    async fn quit(&self) {
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
