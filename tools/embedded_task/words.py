"""The words that made-up schemas are built from.

About 400 of them, and four naming styles: enough that the base learns the rule ("credit limit" becomes
creditLimit or credit_limit) instead of the list. A base pretrained on 50 nouns could not be rescued by any
adapter.
"""


# No words that SQL reserves: "order" or "group" alone could not be a column's name.
def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ENTITIES = _split(
    """
    account actor agent aircraft airport album alert animal answer apartment applicant artist asset athlete
    auction author award badge bank batch battery bed bicycle bill boat book booking border branch brand
    bridge broker budget building bus buyer cabin camera camp candidate car card cargo carrier cart castle
    channel chapter charge child city claim class client clinic club coach coin college committee company
    component concert contract cottage course court crew crop customer dealer debt degree delivery
    department deposit desk device diet director dish district doctor document donor driver drug editor
    employee engine engineer event exam exhibit expense factory farm farmer fee ferry field film fine flight
    flower forest friend fund game garage garden gate gift grade grant guest guide harbor hospital hotel
    house idea image import incident invoice island item job journal judge key kitchen lab lake language
    lawyer lease lecture lender lesson letter library license loan locker machine mailbox manager map market
    match meal medal meeting member menu message mine mission model module mountain movie museum nurse offer
    office operator organ owner painting parcel park part partner patient payment permit pet phone photo
    pilot plan planet plant player poem policy port printer prize product project question race ranch recipe
    refund region rental report request resort restaurant review river road robot room route sale sample
    school season sensor server session shelf shift shipment shop singer site skill song speaker sponsor
    stadium station student supplier survey tank task teacher team tenant terminal theater ticket tool tour
    tower town trader train trip truck vaccine vehicle vendor venue village visit volunteer voter voyage
    warehouse website wing worker zone
    """
)

# Compounds: "delivery note" becomes deliverynotes, delivery_notes, DeliveryNote ... as the schema's style has
# it.
MODIFIERS = _split(
    """
    active annual base billing daily delivery digital direct field final first foreign home internal joint
    last local main master medical mobile monthly night open outer past primary public regional repair rest
    safety sales second senior service shipping sports staff stock storage summer support test travel user
    weekly winter work
    """
)

CATEGORY_ATTRIBUTES = _split(
    """
    brand breed category channel city class climate code color condition country county currency department
    design district diet field fabric flavor format gender genre grade habitat industry kind label language
    layout level location major make material method mode mood nationality nature origin pattern phase
    platform position priority province purpose quality rank region religion role scale season sector shape
    side size stage state status style subject target team territory theme tier title topic town type unit
    vendor version zone
    """
)

TEXT_ATTRIBUTES = _split(
    """
    address alias author caption comment contact description director email extension host leader line
    manager motto name nickname note owner phone publisher remark street summary surname text website
    """
)

NUMBER_ATTRIBUTES = _split(
    """
    age amount area attendance balance bonus budget capacity charge cost credit debt deposit depth discount
    distance duration earnings expense fee fuel gain goals height hours income interest length load loss
    mass memory mileage minutes money pages payment penalty points population power pressure price profit
    quantity rainfall rate rating rent revenue salary score seats share shots speed stock storage supply tax
    temperature time tonnage trips value views visitors volume votes wage weight width wins yield
    """
)

# No "average", "highest" or "total" here: "the total weight" has to mean SUM(weight).
NUMBER_MODIFIERS = _split(
    """
    actual base buy daily extra final gross initial last list monthly net open purchase retail sale spare
    stock unit weekly yearly
    """
)

DATE_ATTRIBUTES = _split(
    """
    arrival birth booking closing creation delivery departure due end entry event expiry founding hire issue
    joining launch opening order payment publication purchase registration release renewal return sale
    shipping start visit
    """
)

KEY_WORDS = ("id", "code", "number", "key", "no", "ref")

FIRST_NAMES = _split(
    """
    Ada Aisha Akira Alma Amir Anders Anna Anton Ben Bianca Boris Carla Carmen Chen Clara Daniel Diego Dora
    Elena Elif Emil Emma Erik Eva Fatima Felix Finn Gita Hana Hans Hugo Ida Igor Ines Ivan Jan Jonas Julia
    Kai Karin Kofi Lars Laura Lea Leo Lina Luca Lucia Maria Marta Max Mei Mila Mona Nadia Nina Noah Nora
    Olga Omar Oscar Paul Petra Rita Rosa Sami Sara Simon Sofia Sven Tara Theo Tom Uma Vera Victor Wei Yara
    Yuki Zoe
    """
)

LAST_NAMES = _split(
    """
    Abe Adler Almeida Bauer Becker Bell Berg Blake Brandt Cho Costa Cruz Dahl Diaz Dubois Ellis Evans Farkas
    Ferrari Fischer Fontaine Garcia Grant Haas Hansen Hoffman Holm Ito Jensen Kaya Keller Khan Kim Klein
    Kovacs Laine Lang Larsen Lee Lopez Mancini Marin Marsh Meyer Moreau Mori Nagy Nguyen Novak Olsen Park
    Patel Perez Petrov Quinn Reed Ricci Rossi Roux Saito Santos Sato Silva Singh Stein Stone Suzuki Tanaka
    Torres Turner Vargas Vogel Wagner Walsh Weber Wolf Wong Yilmaz Young
    """
)

PLACES = _split(
    """
    Aarhus Accra Athens Austin Bergen Berlin Boston Bruges Cairo Calgary Chile Cork Cuba Dakar Denver Dublin
    Egypt Florence Geneva Ghana Graz Hanoi Havana Iceland India Izmir Jakarta Kenya Kyoto Lagos Leeds Lima
    Lisbon Malaga Malta Mexico Milan Morocco Munich Nairobi Naples Nepal Oman Oslo Ottawa Panama Peru Poland
    Porto Prague Quito Riga Rome Salem Seoul Seville Spain Sydney Tallinn Tampa Tokyo Tunis Turin Turkey
    Utrecht Vienna Vietnam Warsaw York Zagreb Zurich
    """
)

VALUE_WORDS = _split(
    """
    Active Alpha Amber Basic Blue Bold Bronze Cancelled Central Classic Closed Coastal Compact Copper
    Crystal Delta Direct Early Eastern Economy Express Fast Final First Fresh Full Global Gold Grand Green
    Harbor Heavy High Hidden Late Light Local Lost Low Main Major Minor Modern Mountain New Noble North
    Northern Old Open Orange Paid Pending Pine Polar Premium Prime Quick Quiet Rapid Red Refused River Royal
    Senior Shared Silver Small Smart Solid South Southern Standard Summer Sunny Super Sweet Tall Urban
    Vacant Valley Violet Vital Warm West Western White Wild Winter Yellow Young
    """
)

# Invented words are glued from these. 7 % of a schema's words are invented: with none, names outside the
# lists are copied less well; with nothing else, copying was not learnt in 1,600 steps.
SYLLABLES = _split(
    """
    ba be bo bra ca ce cor da del do dra el en fa fi fo gar ge go ha hel in ja ka kel ki la len li lo mar me
    mi mo na ne nor o pa pe pra qui ra re ri ro sa sel si so sta ta te ti tor tra u ul va ve vi vo wa wen xa
    ya ze zo
    """
)
