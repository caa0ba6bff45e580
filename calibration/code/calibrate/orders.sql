-- A small shop: customers, products, orders, and the questions that its owner asks on Monday morning.

CREATE TABLE customers (
    id          integer PRIMARY KEY,
    name        text    NOT NULL,
    email       text    NOT NULL UNIQUE,
    joined_on   date    NOT NULL DEFAULT CURRENT_DATE
);

CREATE TABLE products (
    id          integer PRIMARY KEY,
    name        text    NOT NULL,
    price_cents integer NOT NULL CHECK (price_cents >= 0),
    stock       integer NOT NULL DEFAULT 0 CHECK (stock >= 0)
);

CREATE TABLE orders (
    id          integer   PRIMARY KEY,
    customer_id integer   NOT NULL REFERENCES customers (id),
    placed_at   timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    status      text      NOT NULL DEFAULT 'open'
                CHECK (status IN ('open', 'paid', 'shipped', 'cancelled'))
);

-- The price is copied into the line: what a customer paid must not change when the catalogue does.
CREATE TABLE order_lines (
    order_id    integer NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    product_id  integer NOT NULL REFERENCES products (id),
    quantity    integer NOT NULL CHECK (quantity > 0),
    price_cents integer NOT NULL,
    PRIMARY KEY (order_id, product_id)
);

CREATE INDEX orders_by_customer ON orders (customer_id, placed_at);
CREATE INDEX lines_by_product ON order_lines (product_id);

-- What did each month bring in, and how does it compare with the month before?
WITH monthly AS (
    SELECT date_trunc('month', o.placed_at) AS month,
           SUM(l.quantity * l.price_cents)  AS revenue_cents,
           COUNT(DISTINCT o.id)             AS num_orders
    FROM orders AS o
    JOIN order_lines AS l ON l.order_id = o.id
    WHERE o.status IN ('paid', 'shipped')
    GROUP BY 1
)
SELECT month,
       revenue_cents / 100.0 AS revenue,
       num_orders,
       revenue_cents - LAG(revenue_cents) OVER (ORDER BY month) AS change_cents
FROM monthly
ORDER BY month;

-- Who has not bought anything for half a year, but used to?
SELECT c.id, c.name, MAX(o.placed_at) AS last_order, COUNT(*) AS num_orders
FROM customers AS c
JOIN orders AS o ON o.customer_id = c.id AND o.status <> 'cancelled'
GROUP BY c.id, c.name
HAVING COUNT(*) >= 3
   AND MAX(o.placed_at) < CURRENT_TIMESTAMP - INTERVAL '6 months'
ORDER BY num_orders DESC, last_order
LIMIT 50;

-- Which pairs of products are bought together? Each pair is counted once, with the smaller id first.
SELECT a.product_id AS first_id,
       b.product_id AS second_id,
       COUNT(*)     AS together
FROM order_lines AS a
JOIN order_lines AS b
  ON b.order_id = a.order_id AND b.product_id > a.product_id
GROUP BY a.product_id, b.product_id
HAVING COUNT(*) >= 5
ORDER BY together DESC;

-- The three best sellers of every month.
SELECT month, name, sold
FROM (
    SELECT date_trunc('month', o.placed_at) AS month,
           p.name,
           SUM(l.quantity) AS sold,
           ROW_NUMBER() OVER (
               PARTITION BY date_trunc('month', o.placed_at)
               ORDER BY SUM(l.quantity) DESC, p.name
           ) AS place
    FROM order_lines AS l
    JOIN orders AS o ON o.id = l.order_id
    JOIN products AS p ON p.id = l.product_id
    GROUP BY 1, p.name
) AS ranked
WHERE place <= 3
ORDER BY month, place;

-- Taking an order from the shelf: all lines or none.
BEGIN;
UPDATE products AS p
SET stock = p.stock - l.quantity
FROM order_lines AS l
WHERE l.order_id = 1042 AND p.id = l.product_id;   -- the CHECK on stock refuses to go below zero
UPDATE orders SET status = 'shipped' WHERE id = 1042 AND status = 'paid';
COMMIT;
