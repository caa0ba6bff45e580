// A typed store for the state of a page: changes are described, applied by pure functions, can be
// undone, and only those who look at what changed are told.

export type Listener<T> = (value: T, before: T) => void;
export type Unsubscribe = () => void;

type Reducers<S> = Record<string, (state: S, payload: never) => S>;
type Payload<R> = R extends (state: never, payload: infer P) => unknown ? P : never;

interface Options {
  /** How many steps can be undone. */
  history?: number;
  /** Called after every change, for example to write it to a log. */
  onChange?: (name: string, payload: unknown) => void;
}

interface Watch<S> {
  select: (state: S) => unknown;
  listener: Listener<never>;
  last: unknown;
}

export class Store<S, R extends Reducers<S>> {
  private past: S[] = [];
  private future: S[] = [];
  private watches = new Set<Watch<S>>();
  private depth = 0;

  constructor(
    private state: S,
    private readonly reducers: R,
    private readonly options: Options = {},
  ) {}

  get current(): S {
    return this.state;
  }

  /** Apply one change by name. */
  dispatch<N extends keyof R & string>(name: N, payload: Payload<R[N]>): void {
    const reducer = this.reducers[name] as (state: S, payload: Payload<R[N]>) => S;
    const next = reducer(this.state, payload);
    if (Object.is(next, this.state)) return; // nothing changed: no entry in the history, no calls
    this.remember();
    this.replace(next);
    this.options.onChange?.(name, payload);
  }

  /** Several changes that are undone as one and announced once. */
  batch(work: () => void): void {
    if (this.depth === 0) this.remember();
    const before = this.state;
    this.depth += 1;
    try {
      work();
    } catch (error) {
      this.state = before;
      throw error;
    } finally {
      this.depth -= 1;
      if (this.depth === 0) {
        if (Object.is(this.state, before)) this.past.pop();
        this.announce();
      }
    }
  }

  undo(): boolean {
    const previous = this.past.pop();
    if (previous === undefined) return false;
    this.future.push(this.state);
    this.replace(previous);
    return true;
  }

  redo(): boolean {
    const next = this.future.pop();
    if (next === undefined) return false;
    this.past.push(this.state);
    this.replace(next);
    return true;
  }

  /** Call `listener` whenever the selected part of the state is another than before. */
  watch<T>(select: (state: S) => T, listener: Listener<T>): Unsubscribe {
    const watch: Watch<S> = { select, listener: listener as Listener<never>, last: select(this.state) };
    this.watches.add(watch);
    return () => this.watches.delete(watch);
  }

  private remember(): void {
    if (this.depth > 0) return;
    this.past.push(this.state);
    this.future = [];
    const limit = this.options.history ?? 100;
    if (this.past.length > limit) this.past.splice(0, this.past.length - limit);
  }

  private replace(next: S): void {
    this.state = next;
    if (this.depth === 0) this.announce();
  }

  private announce(): void {
    // A listener may change the state again. The inner announcement brings every watch up to date,
    // and the outer one then finds nothing left to say.
    for (const watch of [...this.watches]) {
      const value = watch.select(this.state);
      if (Object.is(value, watch.last)) continue;
      const before = watch.last;
      watch.last = value;
      (watch.listener as Listener<unknown>)(value, before);
    }
  }
}

// How it is used.

interface Todo {
  readonly id: number;
  readonly text: string;
  readonly done: boolean;
}

interface Page {
  readonly todos: readonly Todo[];
  readonly filter: "all" | "open";
}

export function createPage(): Store<Page, typeof reducers> {
  return new Store<Page, typeof reducers>({ todos: [], filter: "all" }, reducers, { history: 50 });
}

const reducers = {
  add: (page: Page, text: string): Page => {
    const id = 1 + Math.max(0, ...page.todos.map((todo) => todo.id));
    return { ...page, todos: [...page.todos, { id, text: text.trim(), done: false }] };
  },
  toggle: (page: Page, id: number): Page => ({
    ...page,
    todos: page.todos.map((todo) => (todo.id === id ? { ...todo, done: !todo.done } : todo)),
  }),
  clear: (page: Page, _: null): Page => {
    const open = page.todos.filter((todo) => !todo.done);
    return open.length === page.todos.length ? page : { ...page, todos: open };
  },
  show: (page: Page, filter: Page["filter"]): Page => ({ ...page, filter }),
};
