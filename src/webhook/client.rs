//! The one place that sends webhooks.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use tokio::time::timeout;

use crate::net::guard::{Guard, Refused};
use crate::net::{CallError, Caller};

/// How much of an answer's body is read, in bytes, so that the connection can be used again.
const MAX_BODY: usize = 16 << 10;

/// How long that may take.
const BODY_TIMEOUT: Duration = Duration::from_millis(500);

/// Sends webhooks, to where the guard lets them go.
#[derive(Debug)]
pub struct Client {
    caller: Caller,
    timeout: Duration,
}

/// Why a webhook has no answer. The text names no address, no user and no query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The URL must not be called.
    #[error("{0}")]
    Refused(Refused),
    /// No answer in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// It could not be connected to, or the connection broke.
    #[error("{0}")]
    Broken(String),
}

impl From<CallError> for SendError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refused) => Self::Refused(refused),
            CallError::Broken(problem) => Self::Broken(problem),
        }
    }
}

impl Client {
    /// A client that waits at most `timeout` for each answer.
    #[must_use]
    pub fn new(guard: Guard, timeout: Duration) -> Self {
        Self { caller: Caller::new(guard, timeout), timeout }
    }

    /// What decides where calls may go.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        self.caller.guard()
    }

    /// How long an answer may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Posts `body` to `url`; the status of the answer, whatever it is. A redirect is not followed. Dropping the call
    /// closes its connection; it may have arrived all the same.
    ///
    /// # Errors
    /// There is no answer; it may have arrived all the same.
    pub async fn post(&self, url: &str, headers: &[(&'static str, String)], body: Bytes) -> Result<u16, SendError> {
        let mut request = self.caller.request(Method::POST, url)?.header(CONTENT_TYPE, "application/json").body(body);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let sent = timeout(self.timeout, Caller::send(request)).await;
        let response = sent.map_err(|_| SendError::Timeout(self.timeout))??;
        let status = response.status().as_u16();
        // The status is the answer, also when the rest breaks off or takes its time.
        timeout(BODY_TIMEOUT, drain(response)).await.unwrap_or_default();
        Ok(status)
    }
}

/// Reads a body and forgets it.
async fn drain(mut response: reqwest::Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > MAX_BODY {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every connection with `answer`; its URL.
    async fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=hush", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let _ = socket.read(&mut head).await;
                    let _ = socket.write_all(answer.as_bytes()).await;
                    // Neither closes nor says more.
                    if answer.is_empty() {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        url
    }

    fn client(allowed: &str) -> Client {
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        Client::new(Guard::new("webhooks.allow", vec![allowed.parse().unwrap()]), Duration::from_secs(2))
    }

    #[tokio::test]
    async fn an_answer_is_its_status_and_a_redirect_is_not_followed() {
        let client = client("127.0.0.1/32");
        for (answer, status) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", 204),
            ("HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\nbroken", 500),
            ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", 302),
        ] {
            let url = server(answer).await;
            assert_eq!(client.post(&url, &[("webhook-id", "m".to_owned())], Bytes::new()).await, Ok(status));
        }
    }

    #[tokio::test]
    async fn silence_ends_in_time_and_an_error_shows_no_query() {
        let client = client("127.0.0.1/32");
        let silent = client.post(&server("").await, &[], Bytes::new()).await;
        assert_eq!(silent, Err(SendError::Timeout(Duration::from_secs(2))));
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = client.post(&format!("http://{free}/?token=hush"), &[], Bytes::new()).await.unwrap_err();
        assert!(matches!(error, SendError::Broken(_)) && !error.to_string().contains("hush"), "{error}");
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_refused_when_it_is_resolved() {
        let url = server("HTTP/1.1 204 No Content\r\n\r\n").await.replace("127.0.0.1", "localhost");
        // Only what has an address there may be called by http.
        assert_eq!(
            client("127.0.0.2/32").post(&url, &[], Bytes::new()).await,
            Err(SendError::Refused(Refused::Private("webhooks.allow".into())))
        );
        assert_eq!(client("127.0.0.1/32").post(&url, &[], Bytes::new()).await, Ok(204));
        let url = url.replace("http://", "https://");
        assert_eq!(
            client("127.0.0.2/32").post(&url, &[], Bytes::new()).await,
            Err(SendError::Refused(Refused::Private("webhooks.allow".into())))
        );
    }
}
