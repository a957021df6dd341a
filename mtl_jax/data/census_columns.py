"""The 42 columns of Census-Income (KDD) and the values that each may take.

As documented in the set's own ``census-income.names``, which leaves out the mark ``?``
for unknown: it occurs in the eight columns that have it here. The vocabulary is fixed, so
that the width of the inputs does not depend on which rows are at hand. All of it occurs
in the official test file, but for one value of the family status.
"""

from __future__ import annotations

UNIVERSE = "Not in universe"
WEIGHT = "instance weight"
"""People that a row stands for; never an input."""
INCOME = "income"
EMPLOYED = "num persons worked for employer"
"""A number; the classes of employers' sizes, 0 to 6."""
FAMILY = "detailed household and family stat"
RARE_FAMILY = "Grandchild <18 ever marr not in subfamily"
"""The one documented value that the official test file lacks."""
MIGRATION = (
    "migration code-change in msa",
    "migration code-change in reg",
    "migration code-move within reg",
)

_COUNTRIES = (
    "Cambodia, Canada, China, Columbia, Cuba, Dominican-Republic, Ecuador, El-Salvador, "
    "England, France, Germany, Greece, Guatemala, Haiti, Holand-Netherlands, Honduras, "
    "Hong Kong, Hungary, India, Iran, Ireland, Italy, Jamaica, Japan, Laos, Mexico, "
    "Nicaragua, Outlying-U S (Guam USVI etc), Panama, Peru, Philippines, Poland, "
    "Portugal, Puerto-Rico, Scotland, South Korea, Taiwan, Thailand, Trinadad&Tobago, "
    "United-States, Vietnam, Yugoslavia, ?"
)
_STATES = (
    "Not in universe, Abroad, Alabama, Alaska, Arizona, Arkansas, California, Colorado, "
    "Connecticut, Delaware, District of Columbia, Florida, Georgia, Idaho, Illinois, "
    "Indiana, Iowa, Kansas, Kentucky, Louisiana, Maine, Maryland, Massachusetts, "
    "Michigan, Minnesota, Mississippi, Missouri, Montana, Nebraska, Nevada, "
    "New Hampshire, New Jersey, New Mexico, New York, North Carolina, North Dakota, "
    "Ohio, Oklahoma, Oregon, Pennsylvania, South Carolina, South Dakota, Tennessee, "
    "Texas, Utah, Vermont, Virginia, West Virginia, Wisconsin, Wyoming, ?"
)
_FAMILY = (
    "Child 18+ ever marr Not in a subfamily, Child 18+ ever marr RP of subfamily, "
    "Child 18+ never marr Not in a subfamily, Child 18+ never marr RP of subfamily, "
    "Child 18+ spouse of subfamily RP, Child <18 ever marr RP of subfamily, "
    "Child <18 ever marr not in subfamily, Child <18 never marr RP of subfamily, "
    "Child <18 never marr not in subfamily, Child <18 spouse of subfamily RP, "
    "Child under 18 of RP of unrel subfamily, Grandchild 18+ ever marr RP of subfamily, "
    "Grandchild 18+ ever marr not in subfamily, "
    "Grandchild 18+ never marr RP of subfamily, "
    "Grandchild 18+ never marr not in subfamily, "
    "Grandchild 18+ spouse of subfamily RP, Grandchild <18 ever marr not in subfamily, "
    "Grandchild <18 never marr RP of subfamily, "
    "Grandchild <18 never marr child of subfamily RP, "
    "Grandchild <18 never marr not in subfamily, Householder, In group quarters, "
    "Nonfamily householder, Other Rel 18+ ever marr RP of subfamily, "
    "Other Rel 18+ ever marr not in subfamily, Other Rel 18+ never marr RP of subfamily, "
    "Other Rel 18+ never marr not in subfamily, Other Rel 18+ spouse of subfamily RP, "
    "Other Rel <18 ever marr RP of subfamily, Other Rel <18 ever marr not in subfamily, "
    "Other Rel <18 never marr child of subfamily RP, "
    "Other Rel <18 never marr not in subfamily, "
    "Other Rel <18 never married RP of subfamily, Other Rel <18 spouse of subfamily RP, "
    "RP of unrelated subfamily, Secondary individual, Spouse of RP of unrelated "
    "subfamily, Spouse of householder"
)
_DOCUMENTED = {
    "age": None,
    "class of worker": "Not in universe, Federal government, Local government, "
    "Never worked, Private, Self-employed-incorporated, Self-employed-not incorporated, "
    "State government, Without pay",
    "detailed industry recode": ", ".join(map(str, range(52))),
    "detailed occupation recode": ", ".join(map(str, range(47))),
    "education": "Children, Less than 1st grade, 1st 2nd 3rd or 4th grade, "
    "5th or 6th grade, 7th and 8th grade, 9th grade, 10th grade, 11th grade, "
    "12th grade no diploma, High school graduate, Some college but no degree, "
    "Associates degree-occup /vocational, Associates degree-academic program, "
    "Bachelors degree(BA AB BS), Masters degree(MA MS MEng MEd MSW MBA), "
    "Prof school degree (MD DDS DVM LLB JD), Doctorate degree(PhD EdD)",
    "wage per hour": None,
    "enroll in edu inst last wk": "Not in universe, High school, College or university",
    "marital stat": "Never married, Married-civilian spouse present, "
    "Married-spouse absent, Separated, Divorced, Widowed, Married-A F spouse present",
    "major industry code": "Not in universe or children, Agriculture, Armed Forces, "
    "Business and repair services, Communications, Construction, Education, "
    "Entertainment, Finance insurance and real estate, Forestry and fisheries, "
    "Hospital services, Manufacturing-durable goods, Manufacturing-nondurable goods, "
    "Medical except hospital, Mining, Other professional services, "
    "Personal services except private HH, Private household services, "
    "Public administration, Retail trade, Social services, Transportation, "
    "Utilities and sanitary services, Wholesale trade",
    "major occupation code": "Not in universe, Adm support including clerical, "
    "Armed Forces, Executive admin and managerial, Farming forestry and fishing, "
    "Handlers equip cleaners etc, Machine operators assmblrs & inspctrs, Other service, "
    "Precision production craft & repair, Private household services, "
    "Professional specialty, Protective services, Sales, "
    "Technicians and related support, Transportation and material moving",
    "race": "White, Black, Other, Amer Indian Aleut or Eskimo, "
    "Asian or Pacific Islander",
    "hispanic origin": "All other, Central or South American, Chicano, Cuban, "
    "Do not know, Mexican (Mexicano), Mexican-American, NA, Other Spanish, Puerto Rican",
    "sex": "Female, Male",
    "member of a labor union": "Not in universe, No, Yes",
    "reason for unemployment": "Not in universe, Job leaver, Job loser - on layoff, "
    "New entrant, Other job loser, Re-entrant",
    "full or part time employment stat": "Children or Armed Forces, "
    "Full-time schedules, Not in labor force, PT for econ reasons usually FT, "
    "PT for econ reasons usually PT, PT for non-econ reasons usually FT, "
    "Unemployed full-time, Unemployed part- time",
    "capital gains": None,
    "capital losses": None,
    "dividends from stocks": None,
    "tax filer stat": "Nonfiler, Single, Head of household, Joint both under 65, "
    "Joint one under 65 & one 65+, Joint both 65+",
    "region of previous residence": "Not in universe, Abroad, Midwest, Northeast, "
    "South, West",
    "state of previous residence": _STATES,
    "detailed household and family stat": _FAMILY,
    "detailed household summary in household": "Child 18 or older, "
    "Child under 18 ever married, Child under 18 never married, "
    "Group Quarters- Secondary individual, Householder, Nonrelative of householder, "
    "Other relative of householder, Spouse of householder",
    WEIGHT: None,
    "migration code-change in msa": "Not in universe, Abroad to MSA, Abroad to nonMSA, "
    "MSA to MSA, MSA to nonMSA, NonMSA to MSA, NonMSA to nonMSA, Nonmover, "
    "Not identifiable, ?",
    "migration code-change in reg": "Not in universe, Abroad, Different county same "
    "state, Different division same region, Different region, Different state same "
    "division, Nonmover, Same county, ?",
    "migration code-move within reg": "Not in universe, Abroad, Different county same "
    "state, Different state in Midwest, Different state in Northeast, Different state "
    "in South, Different state in West, Nonmover, Same county, ?",
    "live in this house 1 year ago": "Not in universe under 1 year old, No, Yes",
    "migration prev res in sunbelt": "Not in universe, No, Yes, ?",
    "num persons worked for employer": None,
    "family members under 18": "Not in universe, Both parents present, "
    "Father only present, Mother only present, Neither parent present",
    "country of birth father": _COUNTRIES,
    "country of birth mother": _COUNTRIES,
    "country of birth self": _COUNTRIES,
    "citizenship": "Native- Born in the United States, Native- Born in Puerto Rico or "
    "U S Outlying, Native- Born abroad of American Parent(s), Foreign born- Not a "
    "citizen of U S, Foreign born- U S citizen by naturalization",
    "own business or self employed": "0, 1, 2",
    "fill inc questionnaire for veteran's admin": "Not in universe, No, Yes",
    "veterans benefits": "0, 1, 2",
    "weeks worked in year": None,
    "year": "94, 95",
    INCOME: "- 50000, 50000+",
}

COLUMNS: dict[str, tuple[str, ...] | None] = {
    name: None if values is None else tuple(sorted(values.split(", ")))
    for name, values in _DOCUMENTED.items()
}
"""Columns in the order of the files: sorted values, or ``None`` for numbers."""
