// The coordinator's JSON. Texts may need the run's token, which stays in this tab.

const KEY = "g2rl-token";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token);
}

export async function get(path, signal) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { headers, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The coordinator does not answer.");
  }
  if (response.ok) return response.headers.get("content-type")?.includes("json") ? response.json() : response.text();
  const answer = await response.json().catch(() => null);
  throw new ApiError(response.status, answer?.error ?? `The coordinator answered ${response.status}.`);
}

// States as they come; `onLost` hears when there are none for longer than a reconnection takes.
export function follow(onState, onLost) {
  const PATIENCE_MS = 6000;
  let timer;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(onLost, PATIENCE_MS);
  };
  wait();
  const connect = () => {
    const source = new EventSource("/api/events");
    source.addEventListener("state", (event) => {
      wait();
      onState(JSON.parse(event.data));
    });
    source.addEventListener("error", () => {
      // A browser gives up for good if the port refuses.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
    });
  };
  connect();
}
