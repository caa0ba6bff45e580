// Runs asynchronous jobs with a limit on how many are under way, in the order of their priority,
// with retries for those that fail in a way that may pass.

/** An error that says that the same job may succeed if it is tried again. */
export class Transient extends Error {
  constructor(message, { after = 0 } = {}) {
    super(message);
    this.name = "Transient";
    this.after = after; // milliseconds that the other side asked us to wait
  }
}

/** A binary heap: the smallest item, by `before`, comes out first. */
class Heap {
  #items = [];
  #before;

  constructor(before) {
    this.#before = before;
  }

  get size() {
    return this.#items.length;
  }

  push(item) {
    const items = this.#items;
    let at = items.push(item) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#before(items[at], items[parent])) break;
      [items[at], items[parent]] = [items[parent], items[at]];
      at = parent;
    }
  }

  pop() {
    const items = this.#items;
    const first = items[0];
    const last = items.pop();
    if (items.length > 0) {
      items[0] = last;
      this.#sink();
    }
    return first;
  }

  #sink() {
    const items = this.#items;
    let at = 0;
    for (;;) {
      let smallest = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < items.length && this.#before(items[child], items[smallest])) smallest = child;
      }
      if (smallest === at) return;
      [items[at], items[smallest]] = [items[smallest], items[at]];
      at = smallest;
    }
  }
}

export class Scheduler {
  #waiting = new Heap((a, b) => a.priority < b.priority || (a.priority === b.priority && a.number < b.number));
  #running = 0;
  #number = 0;
  #idle = [];

  constructor({ limit = 4, attempts = 5, baseDelay = 200, sleep = defaultSleep, random = Math.random } = {}) {
    if (!Number.isInteger(limit) || limit < 1) throw new RangeError(`limit must be a positive integer: ${limit}`);
    Object.assign(this, { limit, attempts, baseDelay, sleep, random });
  }

  /** Queue a job; the promise settles as the job does. Lower priorities run first. */
  run(job, { priority = 0, signal } = {}) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      this.#waiting.push({ job, priority, signal, resolve, reject, number: this.#number++ });
      this.#fill();
    });
  }

  /** Resolves when nothing is queued or running. */
  idle() {
    if (this.#running === 0 && this.#waiting.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  #fill() {
    while (this.#running < this.limit && this.#waiting.size > 0) {
      const task = this.#waiting.pop();
      if (task.signal?.aborted) {
        task.reject(task.signal.reason);
        continue;
      }
      this.#running += 1;
      this.#attempt(task).then(task.resolve, task.reject).finally(() => this.#finished());
    }
  }

  #finished() {
    this.#running -= 1;
    this.#fill();
    if (this.#running === 0 && this.#waiting.size === 0) {
      for (const resolve of this.#idle.splice(0)) resolve();
    }
  }

  async #attempt(task) {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await task.job({ attempt, signal: task.signal });
      } catch (error) {
        const isLast = attempt >= this.attempts;
        if (!(error instanceof Transient) || isLast || task.signal?.aborted) throw error;
        // Doubling waits, each drawn at random below its bound: clients that failed together
        // must not come back together.
        const bound = this.baseDelay * 2 ** (attempt - 1);
        await this.sleep(Math.max(error.after, this.random() * bound));
      }
    }
  }
}

function defaultSleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
