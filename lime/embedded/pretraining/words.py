"""General words for the tokenizer of the embedded backbones, and for their copying tasks in pretraining.

A list of single words, as any pretraining corpus would hold them; never in the form of a task, a prompt or a label set.
"""

GENERAL = """
a about absent accept acceptable action after again air all also always an and animal another answer any are area as ask
at away back bag bank bar base be because before below bend best better between beyond bird black blue blur body book
bottom bounce box break bright brown build building but by call can cannot card case cat category cause cell center
centre change character chart check choice choose class classify cold color colour common compare complete contain
correct count counter crop cross cup cut dark day decide describe detect diagonal did difference different digit
direction display do does dog door dot down draw drop dropping duplicate each edge empty end ending enter entailment
equal equivalent event every exact exhibit exist express eye face fact fall false far feel few field figure fill film
final find first fish fit flat flower follow food for forest forward frame from front full game given glass go goal
good grass gray green ground grow growing half hand happen has have head height help her here high highway him his hold
hole home hot house how if image in industrial into is issue it item its join just keep key kind know label lake land
large last leaf left less lesion letter level light like line linguistically list little live long look low lung make
many map mark mask masking match maybe meaning mean medical metal middle moon more most motion mountain move moves
movie moving much must name near need negative never new next night no none normal not not_duplicate not_entailment
not_equivalent note now number object of off old on one only open opinion option options or orange order original other
out outside over page paint pair paper part pass passage past pasture patch path pattern people permanent petal
phrase picture piece place plain plan plant play point positive possible predict present problem purple put question
quick rain rate read ready real red region repeat repeated repetition residential review right ring rise river road
rock roll room rose rotate rotated round row same satellite save say scale scene score sea second see select selecting
sentence sentiment sequence set seven shake shape she ship short show shown side sign similar similarity simple single
sit six size sky sleep slide slow small snow social solution some sort sound space spell spin spot square stand star
start state station statement stay step still stone stop story stream street stripe substitution sun swap sweet swing
table take tall tampering tell ten text than that the their them then there these they thing think this those three
time tissue to tone too top touch toward tower train tree triangle true truth try tumor tumour turn two type
unacceptable unanswerable under unknown up upon use value very video view visible wait walk wall want warm was watch
water way we weather were west what wheel when where whether which while white who whole whose why will wind window
wing winter wish with without woman wood word work world would write written wrong x yellow yes yet you your zero
daisy tulip rose lily iris violet poppy lotus beagle pug boxer husky persian siamese bengal birman sphynx spaniel
annual crop herbaceous vegetation leopard anchor balloon butterfly camera chair clock crab lamp piano umbrella
assistant helpful system user north south east jumps runs swings arrow clip moment
""".split()
