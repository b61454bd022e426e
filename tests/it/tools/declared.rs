//! Endpoints that the configuration declares.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn a_declared_endpoint_is_called_with_its_secret_from_a_file() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 4096];
        let read = socket.read(&mut buffer).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsunny").await.unwrap();
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    });
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "open-sesame\n").unwrap();
    let path = secret.path().display();
    let bench = Bench::new(&format!(
        "[tools.weather]\nurl = \"http://{address}/v1/{{city}}\"\nallow = [\"127.0.0.1\"]\n\
         headers = [\"Authorization=Bearer file:{path}\"]\ndescription = \"Tells the weather.\"\n\
         parameters = '{{\"type\": \"object\", \"properties\": {{\"city\": {{\"type\": \"string\"}}}}, \"required\": [\"city\"]}}'\n"
    ));
    let card = bench.tool("weather").await.tool.card();
    assert_eq!((card.name.as_str(), card.description.as_str()), ("weather", "Tells the weather."));
    let wrong = bench.call("weather", json!({})).await;
    assert!(wrong.failed && wrong.content.contains("\"city\" is a required property"), "{wrong:?}");
    assert_eq!(bench.given("weather", json!({"city": "Bern"})).await, "sunny");
    let request = soon("the request", served).await.unwrap();
    assert!(request.starts_with("GET /v1/Bern ") && request.contains("Bearer open-sesame"), "{request}");
}
