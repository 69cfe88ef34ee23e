"""The task's schema: classicmodels, MySQL's sample database, with the ways people speak of it.

Source: table and column names of mysqltutorial.org's "MySQL Sample Database". The rows are our own (rows.py).
`describe_schema` reads the columns' constants from a database, so that questions find rows.
"""

import sqlite3
from dataclasses import replace

from tools.embedded_task.schemas import Column, Link, Schema, Table

CREATE_SQL = """
CREATE TABLE productlines (
  productLine TEXT PRIMARY KEY, textDescription TEXT, htmlDescription TEXT, image BLOB);
CREATE TABLE products (
  productCode TEXT PRIMARY KEY, productName TEXT NOT NULL,
  productLine TEXT NOT NULL REFERENCES productlines (productLine), productScale TEXT NOT NULL,
  productVendor TEXT NOT NULL, productDescription TEXT, quantityInStock INTEGER NOT NULL,
  buyPrice REAL NOT NULL, MSRP REAL NOT NULL);
CREATE TABLE offices (
  officeCode TEXT PRIMARY KEY, city TEXT NOT NULL, phone TEXT NOT NULL, addressLine1 TEXT NOT NULL,
  addressLine2 TEXT, state TEXT, country TEXT NOT NULL, postalCode TEXT NOT NULL, territory TEXT NOT NULL);
CREATE TABLE employees (
  employeeNumber INTEGER PRIMARY KEY, lastName TEXT NOT NULL, firstName TEXT NOT NULL,
  extension TEXT NOT NULL, email TEXT NOT NULL, officeCode TEXT NOT NULL REFERENCES offices (officeCode),
  reportsTo INTEGER REFERENCES employees (employeeNumber), jobTitle TEXT NOT NULL);
CREATE TABLE customers (
  customerNumber INTEGER PRIMARY KEY, customerName TEXT NOT NULL, contactLastName TEXT NOT NULL,
  contactFirstName TEXT NOT NULL, phone TEXT NOT NULL, addressLine1 TEXT NOT NULL, addressLine2 TEXT,
  city TEXT NOT NULL, state TEXT, postalCode TEXT, country TEXT NOT NULL,
  salesRepEmployeeNumber INTEGER REFERENCES employees (employeeNumber), creditLimit REAL);
CREATE TABLE orders (
  orderNumber INTEGER PRIMARY KEY, orderDate TEXT NOT NULL, requiredDate TEXT NOT NULL, shippedDate TEXT,
  status TEXT NOT NULL, comments TEXT,
  customerNumber INTEGER NOT NULL REFERENCES customers (customerNumber));
CREATE TABLE orderdetails (
  orderNumber INTEGER NOT NULL REFERENCES orders (orderNumber),
  productCode TEXT NOT NULL REFERENCES products (productCode), quantityOrdered INTEGER NOT NULL,
  priceEach REAL NOT NULL, orderLineNumber INTEGER NOT NULL, PRIMARY KEY (orderNumber, productCode));
CREATE TABLE payments (
  customerNumber INTEGER NOT NULL REFERENCES customers (customerNumber), checkNumber TEXT NOT NULL,
  paymentDate TEXT NOT NULL, amount REAL NOT NULL, PRIMARY KEY (customerNumber, checkNumber));
"""

_CITY = ("in {value}", "located in {value}")
_COUNTRY = ("from {value}", "based in the country {value}")

_TABLES = (
    Table(
        "productlines",
        (("product line", "product lines"),),
        (
            Column("productLine", ("product line",), "shown"),
            Column("textDescription", ("text description",), "text"),
        ),
    ),
    Table(
        "products",
        (("product", "products"), ("item", "items")),
        (
            Column("productCode", ("product code",), "shown"),
            Column("productName", ("product name", "name"), "text"),
            Column("productLine", ("product line",), "category", equal_forms=("in the {value} line",)),
            Column("productScale", ("product scale", "scale"), "category", equal_forms=("built in {value}",)),
            Column(
                "productVendor",
                ("product vendor", "vendor"),
                "category",
                equal_forms=("made by {value}",),
            ),
            Column("quantityInStock", ("quantity in stock", "stock"), "number"),
            Column("buyPrice", ("buy price",), "number"),
            Column("MSRP", ("MSRP",), "number"),
        ),
    ),
    Table(
        "offices",
        (("office", "offices"), ("branch", "branches")),
        (
            Column("officeCode", ("office code",), "shown"),
            Column("city", ("city",), "category", equal_forms=_CITY),
            Column("phone", ("phone", "phone number"), "shown"),
            Column("addressLine1", ("address line 1",), "shown"),
            Column("addressLine2", ("address line 2",), "shown", nullable=True),
            Column("state", ("state",), "category", nullable=True),
            Column("country", ("country",), "category", equal_forms=_COUNTRY),
            Column("postalCode", ("postal code", "zip code"), "shown"),
            Column("territory", ("territory",), "category", equal_forms=("serving {value}",)),
        ),
    ),
    Table(
        "employees",
        (("employee", "employees"), ("staff member", "staff members")),
        (
            Column("employeeNumber", ("employee number",), "shown"),
            Column("lastName", ("last name", "surname"), "text"),
            Column("firstName", ("first name",), "text"),
            Column("extension", ("extension",), "shown"),
            Column("email", ("email",), "shown"),
            Column("reportsTo", ("boss",), "shown", nullable=True),
            Column("jobTitle", ("job title", "role"), "category", equal_forms=("working as {value}",)),
        ),
    ),
    Table(
        "customers",
        (("customer", "customers"), ("client", "clients")),
        (
            Column("customerNumber", ("customer number",), "shown"),
            Column("customerName", ("customer name", "name"), "text"),
            Column("contactLastName", ("contact last name",), "text"),
            Column("contactFirstName", ("contact first name",), "text"),
            Column("phone", ("phone", "phone number"), "shown"),
            Column("addressLine1", ("address line 1",), "shown"),
            Column("addressLine2", ("address line 2",), "shown", nullable=True),
            Column("city", ("city",), "category", equal_forms=_CITY),
            Column("state", ("state",), "category", nullable=True),
            Column("postalCode", ("postal code", "zip code"), "shown"),
            Column("country", ("country",), "category", equal_forms=_COUNTRY),
            Column("creditLimit", ("credit limit",), "number"),
        ),
    ),
    Table(
        "orders",
        (("order", "orders"),),
        (
            Column("orderNumber", ("order number",), "shown"),
            Column("orderDate", ("order date",), "date"),
            Column("requiredDate", ("required date", "deadline"), "date"),
            Column("shippedDate", ("shipped date",), "date", nullable=True),
            Column("status", ("status",), "category", equal_forms=("marked {value}",)),
            Column("comments", ("comments",), "text", nullable=True),
        ),
    ),
    Table(
        "orderdetails",
        (("order detail", "order details"), ("order line", "order lines")),
        (
            Column("orderLineNumber", ("order line number",), "shown"),
            Column("quantityOrdered", ("quantity ordered", "quantity"), "number"),
            Column("priceEach", ("price each",), "number"),
            Column("productCode", ("product code",), "shown"),
        ),
    ),
    Table(
        "payments",
        (("payment", "payments"),),
        (
            Column("checkNumber", ("check number",), "shown"),
            Column("paymentDate", ("payment date",), "date"),
            Column("amount", ("amount",), "number"),
        ),
    ),
)

# child, foreign key, parent, parent's key, names that the child has for the parent
_LINKS: tuple[tuple[str, str, str, str, tuple[tuple[str, str], ...]], ...] = (
    ("products", "productLine", "productlines", "productLine", ()),
    ("employees", "officeCode", "offices", "officeCode", ()),
    ("customers", "salesRepEmployeeNumber", "employees", "employeeNumber", (("sales rep", "sales reps"),)),
    ("orders", "customerNumber", "customers", "customerNumber", ()),
    ("payments", "customerNumber", "customers", "customerNumber", ()),
    ("orderdetails", "orderNumber", "orders", "orderNumber", ()),
    ("orderdetails", "productCode", "products", "productCode", ()),
)


def describe_schema(connection: sqlite3.Connection) -> Schema:
    """Returns the schema with every column's constants read from the database's rows, in their order."""
    tables = {table.name: _with_constants(table, connection) for table in _TABLES}
    links = tuple(Link(tables[child], key, tables[parent], other, roles) for child, key, parent, other, roles in _LINKS)
    return Schema(tuple(tables.values()), links)


def _with_constants(table: Table, connection: sqlite3.Connection) -> Table:
    columns = []
    for column in table.columns:
        name = column.name
        rows = connection.execute(f"SELECT DISTINCT {name} FROM {table.name} WHERE {name} NOTNULL ORDER BY {name}")
        said = [_round(value) if column.kind == "number" else str(value) for (value,) in rows]
        columns.append(replace(column, constants=tuple(dict.fromkeys(said))))
    return replace(table, columns=tuple(columns))


def _round(number: float) -> str:
    """Returns the number to two significant digits: people ask for more than 57000, not than 57128.68."""
    return f"{float(f'{number:.1e}'):g}"
