"""The task's database: generated rows for classicmodels. The same seed gives the same rows.

None is copied from MySQL's sample: names, companies and models are put together from the word lists.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path
from random import Random

from tools.embedded_task import values, words
from tools.embedded_task.classicmodels import CREATE_SQL

# About the size of MySQL's sample, with fewer order lines, so that the file stays small.
NUM_PRODUCTS = 90
NUM_EMPLOYEES = 24
NUM_CUSTOMERS = 100
NUM_ORDERS = 260
NUM_PAYMENTS = 220

LINES = ("Classic Cars", "Motorcycles", "Airplanes", "Sailing Ships", "Trains", "Heavy Trucks", "Race Cars")
BODIES = ("Roadster", "Sedan", "Cruiser", "Express", "Pickup", "Racer", "Clipper", "Coupe", "Scout", "Glider")
SCALES = ("1:10", "1:12", "1:18", "1:24", "1:32", "1:50", "1:72")
VENDORS = (
    "Norbel Models",
    "Tin Harbor",
    "Second Gear",
    "Delta Diecast",
    "Little Wheels",
    "Orlin Studio",
    "Prime Replicas",
)
STATUSES = ("Shipped", "Shipped", "Shipped", "In Process", "On Hold", "Cancelled", "Resolved", "Disputed")
COMMENTS = (
    "Customer asked for gift wrap",
    "Call before delivery",
    "Wrong address",
    "Partial delivery",
    "Discount agreed",
)
JOBS = ("Sales Rep", "Sales Rep", "Sales Rep", "Sales Manager", "Accountant", "Store Clerk")
STREETS = (
    "Main Street",
    "Mill Road",
    "Park Avenue",
    "Station Square",
    "River Lane",
    "High Street",
    "Church Road",
)
COMPANY_ENDS = ("Gifts", "Collectables", "Imports", "Toys", "Traders", "Stores", "Models", "Brothers")
# city, state, country
# fmt: off
CITIES = (
    ("Boston", "MA", "USA"), ("Denver", "CO", "USA"), ("Tampa", "FL", "USA"), ("Salem", "OR", "USA"),
    ("Austin", "TX", "USA"), ("Paris", None, "France"), ("Lyon", None, "France"),
    ("Nantes", None, "France"), ("Berlin", None, "Germany"), ("Munich", None, "Germany"),
    ("London", None, "UK"), ("Leeds", None, "UK"), ("Sydney", "NSW", "Australia"),
    ("Melbourne", "Victoria", "Australia"), ("Tokyo", None, "Japan"), ("Osaka", None, "Japan"),
    ("Madrid", None, "Spain"), ("Seville", None, "Spain"), ("Oslo", None, "Norway"),
    ("Bergen", None, "Norway"), ("Turin", None, "Italy"), ("Milan", None, "Italy"),
    ("Calgary", "Alberta", "Canada"), ("Ottawa", "Ontario", "Canada"),
)
# fmt: on
TERRITORIES = {"USA": "North America", "Canada": "North America", "Japan": "Asia", "Australia": "Pacific"}
OFFICE_CITIES = (0, 4, 5, 8, 10, 12, 14)  # positions in CITIES
FIRST_DAY = date(2022, 1, 3)
NUM_DAYS = 900

Row = tuple[object, ...]


def write_database(path: Path, *, seed: int) -> None:
    """Writes the SQLite file. `path` must not exist yet."""
    rng = Random(f"rows-{seed}")
    products = _make_products(rng)
    employees = _make_employees(rng)
    customers = _make_customers(rng, [row for row in employees if row[7] == "Sales Rep"])
    orders = _make_orders(rng, customers)
    connection = sqlite3.connect(path)
    try:
        connection.executescript(CREATE_SQL)
        lines = [(line, f"{line} for collectors", None, None) for line in LINES]
        _insert(connection, "productlines", lines)
        _insert(connection, "products", products)
        _insert(connection, "offices", _make_offices(rng))
        _insert(connection, "employees", employees)
        _insert(connection, "customers", customers)
        _insert(connection, "orders", orders)
        _insert(connection, "orderdetails", _make_details(rng, orders, products))
        _insert(connection, "payments", _make_payments(rng, customers))
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()


def _insert(connection: sqlite3.Connection, table: str, rows: Iterable[Row]) -> None:
    listed = list(rows)
    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(listed[0]))})", listed)


def _make_products(rng: Random) -> list[Row]:
    names: set[str] = set()
    while len(names) < NUM_PRODUCTS:
        names.add(f"{rng.randint(1905, 2005)} {values.invent_word(rng).capitalize()} {rng.choice(BODIES)}")
    rows: list[Row] = []
    for position, name in enumerate(sorted(names)):
        scale = rng.choice(SCALES)
        code = f"S{scale[2:]}_{1000 + position * 37}"
        buy = rng.randint(1500, 11000) / 100
        retail = round(buy * rng.randint(125, 215) / 100, 2)
        text = f"{name} with opening parts"
        rows.append(
            (
                code,
                name,
                rng.choice(LINES),
                scale,
                rng.choice(VENDORS),
                text,
                rng.randint(15, 9900),
                buy,
                retail,
            )
        )
    return rows


def _make_offices(rng: Random) -> list[Row]:
    rows: list[Row] = []
    for code, position in enumerate(OFFICE_CITIES, start=1):
        city, state, country = CITIES[position]
        address, suite = _make_address(rng), rng.choice((None, "Floor 2", "Suite 300"))
        territory = TERRITORIES.get(country, "Europe")
        rows.append((str(code), city, _make_phone(rng), address, suite, state, country, _make_postal(rng), territory))
    return rows


def _make_employees(rng: Random) -> list[Row]:
    rows: list[Row] = []
    last_names = rng.sample(words.LAST_NAMES, NUM_EMPLOYEES)
    for position, last in enumerate(last_names):
        number = 1002 + position * 27
        first = rng.choice(words.FIRST_NAMES)
        job = ("President", "VP Sales", "VP Marketing")[position] if position < 3 else rng.choice(JOBS)
        boss = None if position == 0 else 1002 if position < 3 else rows[rng.randint(1, 2)][0]
        email = f"{first[0].lower()}{last.lower()}@classicmodels.example"
        office = str(rng.randint(1, len(OFFICE_CITIES)))
        rows.append((number, last, first, f"x{rng.randint(100, 9999)}", email, office, boss, job))
    return rows


def _make_customers(rng: Random, sales_reps: Sequence[Row]) -> list[Row]:
    rows: list[Row] = []
    names: set[str] = set()
    while len(names) < NUM_CUSTOMERS:
        start = rng.choice(
            (
                rng.choice(words.VALUE_WORDS),
                rng.choice(words.LAST_NAMES),
                values.invent_word(rng).capitalize(),
            )
        )
        names.add(f"{start} {rng.choice(COMPANY_ENDS)}")
    for position, name in enumerate(sorted(names)):
        city, state, country = rng.choice(CITIES)
        contact = (rng.choice(words.LAST_NAMES), rng.choice(words.FIRST_NAMES))
        suite = f"Level {rng.randint(2, 15)}" if rng.random() < 0.2 else None
        rep = rng.choice(sales_reps)[0] if rng.random() < 0.85 else None
        limit = float(rng.randint(0, 1300) * 100)
        place = (_make_phone(rng), _make_address(rng), suite, city, state, _make_postal(rng), country)
        rows.append((103 + position * 4, name, *contact, *place, rep, limit))
    return rows


def _make_orders(rng: Random, customers: Sequence[Row]) -> list[Row]:
    buyers = rng.sample(list(customers), len(customers) * 4 // 5)  # a fifth has never ordered
    rows: list[Row] = []
    for position in range(NUM_ORDERS):
        ordered = FIRST_DAY + timedelta(days=position * NUM_DAYS // NUM_ORDERS)
        required = ordered + timedelta(days=rng.randint(6, 12))
        status = rng.choice(STATUSES)
        waits = status in ("In Process", "On Hold", "Cancelled")
        shipped = None if waits else str(ordered + timedelta(days=rng.randint(1, 7)))
        comment = rng.choice(COMMENTS) if rng.random() < 0.3 else None
        rows.append((10100 + position, str(ordered), str(required), shipped, status, comment, rng.choice(buyers)[0]))
    return rows


def _make_details(rng: Random, orders: Sequence[Row], products: Sequence[Row]) -> list[Row]:
    sold = products[: len(products) * 9 // 10]  # the others have never been ordered
    rows: list[Row] = []
    for order in orders:
        for line, product in enumerate(rng.sample(list(sold), rng.randint(1, 5)), start=1):
            price = round(float(str(product[8])) * rng.randint(80, 100) / 100, 2)
            rows.append((order[0], product[0], rng.randint(10, 70), price, line))
    return rows


def _make_payments(rng: Random, customers: Sequence[Row]) -> list[Row]:
    payers = rng.sample(list(customers), len(customers) * 3 // 4)  # a quarter has never paid
    rows: list[Row] = []
    for position in range(NUM_PAYMENTS):
        check = f"{rng.choice('ABCDEFGHJKLMN')}{rng.choice('OPQRSTUVW')}{100000 + position * 3571}"
        paid = FIRST_DAY + timedelta(days=rng.randint(5, NUM_DAYS))
        rows.append((rng.choice(payers)[0], check, str(paid), rng.randint(60000, 12000000) / 100))
    return rows


def _make_phone(rng: Random) -> str:
    return f"+{rng.randint(1, 81)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}"


def _make_address(rng: Random) -> str:
    return f"{rng.randint(1, 299)} {rng.choice(STREETS)}"


def _make_postal(rng: Random) -> str:
    return str(rng.randint(10000, 99999))
