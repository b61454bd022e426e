//! A service of its own that embeds Runcast: it mounts the routes in its actix-web application, under a
//! prefix, and registers an agent of its own.
//!
//! ```sh
//! cargo run --example embedded
//! curl -N http://127.0.0.1:8080/agents/v1/runs -H 'content-type: application/json' \
//!     -d '{"agent": "shout", "input": "hello there", "params": {"marks": 3}, "stream": true}'
//! ```

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use actix_web::{App, HttpServer, web};
use async_trait::async_trait;
use runcast::Runcast;
use runcast::agent::{Agent, AgentCard, AgentError, Answer, RunContext};
use runcast::config::Config;
use serde_json::json;

/// Says its input louder.
struct Shout;

#[async_trait]
impl Agent for Shout {
    fn card(&self) -> AgentCard {
        AgentCard {
            description: "Says its input louder.".to_owned(),
            params_schema: json!({
                "type": "object",
                "additionalProperties": false,
                "properties": {"marks": {"type": "integer", "minimum": 0, "maximum": 10}},
            }),
            ..AgentCard::new("shout", "shout")
        }
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        let marks = context.spec().params.get("marks").and_then(serde_json::Value::as_u64).unwrap_or(1);
        let mut said = String::new();
        for word in context.input().last_text().split_inclusive(' ') {
            let word = word.to_uppercase();
            said.push_str(&word);
            context.delta(word).await?;
        }
        let end = "!".repeat(usize::try_from(marks).unwrap_or(1));
        context.delta(end.as_str()).await?;
        said.push_str(&end);
        context.message(said.as_str()).await?;
        Ok(Answer::finished(said))
    }
}

/// Serves until the server is stopped by a signal, then lets Runcast finish.
pub async fn serve(listener: TcpListener, data: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config { data, ..Config::default() };
    let runcast = Runcast::builder().config(config).agent(Shout).build().await?;
    let mounted = runcast.clone();
    HttpServer::new(move || {
        let mounted = mounted.clone();
        App::new()
            .route("/", web::get().to(|| async { "the service's own page" }))
            .service(web::scope("/agents").configure(|config| mounted.configure(config)))
    })
    .listen(listener)?
    .run()
    .await?;
    runcast.shut_down(Duration::from_secs(10)).await;
    Ok(())
}

/// Starts the service.
#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:8080")
        .map_err(|error| io::Error::new(error.kind(), format!("127.0.0.1:8080: {error}")))?;
    println!("listening on http://127.0.0.1:8080, Runcast under /agents");
    serve(listener, "runcast-data".into()).await
}
