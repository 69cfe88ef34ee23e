"""The sentences questions are made of. A question, a condition and an aggregate each have several wordings.

The base has seen them all. What the task asks of it anew is the schema: its names, how people speak of them,
and which tables join on what.
"""

# {where} is empty or a condition with a space before it.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "projection": (
        "List the {cols} of all {rows}.",
        "Show the {cols} of every {row}.",
        "What are the {cols} of the {rows}?",
        "I need the {cols} for all of our {rows}.",
        "{cols} of each {row}, please.",
        "Go through the {rows} and report {cols}.",
    ),
    "distinct": (
        "List the different {cols} of {rows}{where}.",
        "What distinct {cols} do the {rows}{where} have?",
        "Which {cols} occur among the {rows}{where}?",
        "Name each {cols} of {rows}{where} once.",
    ),
    "order_up": (
        "List the {cols} of {rows}{where} sorted by {key}.",
        "Show the {cols} of {rows}{where} in ascending order of {key}.",
        "Order the {rows}{where} by {key} from low to high and give the {cols}.",
        "{cols} of {rows}{where}, lowest {key} first.",
    ),
    "order_down": (
        "List the {cols} of {rows}{where} sorted by {key} in descending order.",
        "Show the {cols} of {rows}{where} in descending order of {key}.",
        "Order the {rows}{where} by {key} from high to low and give the {cols}.",
        "{cols} of {rows}{where}, highest {key} first.",
    ),
    "top": (
        "List the {cols} of the {n} {rows}{where} with the highest {key}.",
        "Show the {cols} of the top {n} {rows}{where} by {key}.",
        "Which {n} {rows}{where} lead in {key}? Give the {cols}.",
        "{cols} of the {n} {rows}{where} that are largest in {key}.",
    ),
    "bottom": (
        "List the {cols} of the {n} {rows}{where} with the lowest {key}.",
        "Show the {cols} of the bottom {n} {rows}{where} by {key}.",
        "Which {n} {rows}{where} come last in {key}? Give the {cols}.",
        "{cols} of the {n} {rows}{where} that are smallest in {key}.",
    ),
    "filter": (
        "List the {cols} of {rows}{where}.",
        "Show the {cols} of the {rows}{where}.",
        "What are the {cols} of {rows}{where}?",
        "Find {rows}{where} and give their {cols}.",
        "For {rows}{where} I need the {cols}.",
        "Tell me the {cols} of any {row}{where}.",
    ),
    "count": (
        "How many {rows}{where} are there?",
        "Count the {rows}{where}.",
        "What is the number of {rows}{where}?",
        "How many {rows}{where} do we have?",
        "Give the head count of {rows}{where}.",
        "Tell me how large the set of {rows}{where} is.",
    ),
    "count_distinct": (
        "How many different {cols} do the {rows}{where} have?",
        "Count the distinct {cols} of {rows}{where}.",
        "Over how many {cols} are the {rows}{where} spread?",
    ),
    "aggregate": (
        "What is the {agg} {col} of {rows}{where}?",
        "Find the {agg} {col} of all {rows}{where}.",
        "Show the {agg} {col} of {rows}{where}.",
        "Across {rows}{where}, what is the {agg} {col}?",
        "Compute the {agg} {col} for {rows}{where}.",
    ),
    "group_count": (
        "How many {rows}{where} are there for each {key}?",
        "Count the {rows}{where} per {key}.",
        "Show each {key} and the number of {rows}{where}.",
        "Break the {rows}{where} down by {key} and count them.",
        "Number of {rows}{where} by {key}?",
    ),
    "group_aggregate": (
        "What is the {agg} {col} of {rows}{where} for each {key}?",
        "Show the {agg} {col} of {rows}{where} per {key}.",
        "By {key}, what is the {agg} {col} of {rows}{where}?",
        "Group the {rows}{where} by {key} and give the {agg} {col}.",
    ),
    "having_more": (
        "Which {key} has more than {n} {rows}{where}?",
        "List each {key} with more than {n} {rows}{where}.",
        "For which {key} do we count over {n} {rows}{where}?",
        "{key} values that more than {n} {rows}{where} share?",
    ),
    "having_aggregate": (
        "Which {key} has {rows}{where} with {agg} {col} above {n}?",
        "List each {key} whose {rows}{where} have {agg} {col} above {n}.",
        "Where is the {agg} {col} of {rows}{where} by {key} beyond {n}?",
    ),
    "most": (
        "Which {key} has the most {rows}{where}?",
        "What is the most common {key} of {rows}{where}?",
        "Where are most of the {rows}{where}, by {key}?",
        "The {key} that leads in {rows}{where}?",
    ),
    "join": (
        "List the {col} of each {child} and the {other} of its {parent}.",
        "For every {child}, show the {col} and the {other} of the {parent}.",
        "Put the {col} of the {children} beside the {other} of their {parent}.",
        "{children} with their {col} and the {parent}'s {other}?",
    ),
    "join_filter": (
        "List the {col} of {children} of {parents}{where}.",
        "Show the {col} of all {children} that belong to {parents}{where}.",
        "Find what {parents}{where} have in {children} and give the {col}.",
        "For {parents}{where}, which {col} do their {children} have?",
    ),
    "join_count": (
        "How many {children} belong to {parents}{where}?",
        "Count the {children} of {parents}{where}.",
        "{parents}{where}: how many {children} in all?",
        "What number of {children} do {parents}{where} account for?",
    ),
    "join_aggregate": (
        "What is the {agg} {col} of {children} of {parents}{where}?",
        "Find the {agg} {col} of {children} that belong to {parents}{where}.",
        "For {parents}{where}, compute the {agg} {col} of their {children}.",
    ),
    "join_group_count": (
        "How many {children} are there for each {other} of the {parent}?",
        "Count the {children} per {parent} {other}.",
        "Split the {children} by their {parent}'s {other} and count.",
    ),
    "join_group_aggregate": (
        "What is the {agg} {col} of {children} for each {other} of the {parent}?",
        "Show the {agg} {col} of {children} per {parent} {other}.",
        "By {other} of the {parent}, what is the {agg} {col} of {children}?",
    ),
    "chain": (
        "List the {col} of each {child} and the {other} of the {top} of its {mid}.",
        "For every {child}, show the {col} and the {other} of the {mid}'s {top}.",
        "{children} with {col}, and through the {mid} the {other} of the {top}?",
    ),
    "chain_filter": (
        "List the {col} of {children} of {mids} of {tops}{where}.",
        "Go from {tops}{where} over {mids} to {children} and show the {col}.",
    ),
    "chain_group": (
        "What is the {agg} {col} of {children} for each {other} of the {top} of the {mid}?",
        "By the {other} of the {mid}'s {top}, give the {agg} {col} of {children}.",
    ),
    "bridge": (
        "For every {child}, show the {col} of the {parent} and the {other} of the {second}.",
        "Which {col} of the {parent} meets which {other} of the {second} in the {children}?",
    ),
    "most_children": (
        "Which {other} of {parents} has the most {children}?",
        "Show the {other} of the {parent} with the most {children}.",
        "Who leads in number of {children}? Give the {other} of the {parent}.",
    ),
    "has_children": (
        "List the {cols} of {parents} that have {children}{where}.",
        "Show the {cols} of all {parents} with any {children}{where}.",
        "Which {parents} have at least one of the {children}{where}? Give the {cols}.",
    ),
    "has_no_children": (
        "List the {cols} of {parents} that have no {children}{where}.",
        "Show the {cols} of all {parents} without any {children}{where}.",
        "Which {parents} lack {children}{where}? Give the {cols}.",
    ),
    "above_average": (
        "List the {cols} of {rows} whose {col} is above the average.",
        "Show the {cols} of {rows} with more than the average {col}.",
        "Which {rows} beat the mean {col}? Give the {cols}.",
    ),
    "below_average": (
        "List the {cols} of {rows} whose {col} is below the average.",
        "Show the {cols} of {rows} with less than the average {col}.",
        "Which {rows} fall short of the mean {col}? Give the {cols}.",
    ),
    "is_maximum": (
        "List the {cols} of all {rows} that reach the maximum {col}.",
        "Show the {cols} of {rows} whose {col} equals the maximum.",
        "Nothing is above them in {col}: which {rows}? Give the {cols}.",
    ),
    "is_minimum": (
        "List the {cols} of all {rows} that have the minimum {col}.",
        "Show the {cols} of {rows} whose {col} equals the minimum.",
        "Nothing is below them in {col}: which {rows}? Give the {cols}.",
    ),
}

# Put after the rows they speak of.
CONDITIONS: dict[str, tuple[str, ...]] = {
    "equal": (
        "whose {col} is {value}",
        "with {col} {value}",
        "that have {value} as {col}",
        "where {col} reads {value}",
    ),
    "not_equal": ("whose {col} is not {value}", "with a {col} other than {value}"),
    "greater": (
        "whose {col} is greater than {value}",
        "with {col} above {value}",
        "that exceed {value} in {col}",
    ),
    "less": (
        "whose {col} is less than {value}",
        "with {col} below {value}",
        "that stay under {value} in {col}",
    ),
    "at_least": ("whose {col} is at least {value}", "with {col} of {value} or more"),
    "at_most": ("whose {col} is at most {value}", "with {col} of {value} or less"),
    "after": ("whose {col} is after {value}", "with {col} after {value}", "with {col} later than {value}"),
    "before": (
        "whose {col} is before {value}",
        "with {col} before {value}",
        "with {col} earlier than {value}",
    ),
    "between": (
        "whose {col} is between {low} and {high}",
        "with {col} from {low} to {high}",
        "in the {col} range {low} to {high}",
    ),
    "in": ("whose {col} is {values}", "with {col} {values}", "that have either {values} as {col}"),
    "starts": ("whose {col} starts with {value}", "with a {col} beginning with {value}"),
    "contains": ("whose {col} contains {value}", "with {value} somewhere in the {col}"),
    "missing": ("whose {col} is missing", "without {col}", "with no {col} on record"),
    "present": ("whose {col} is known", "that do have a {col}"),
}

AGGREGATES: dict[str, tuple[str, ...]] = {
    "AVG": ("average", "mean", "typical"),
    "SUM": ("total", "combined", "overall"),
    "MAX": ("highest", "maximum", "largest", "top"),
    "MIN": ("lowest", "minimum", "smallest", "bottom"),
}
