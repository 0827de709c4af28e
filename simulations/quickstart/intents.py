"""The twenty intents of the quickstart task."""

from __future__ import annotations

from collections.abc import Mapping

from simulations.quickstart.grammar import Choices, Intent

INTENTS: Mapping[str, Intent] = {
    "lights_on": Intent(
        rivals=("lights_off", "device_status"),
        orders=Choices(
            (
                "(turn|switch) on the {light} in the {room}",
                "(turn|switch|put) the {light} in the {room} on",
                "make the {room} (brighter|less dark)",
                "light up the {room}",
            ),
            ("give me some light in the {room}", "get the {light} on in the {room}"),
        ),
        remarks=Choices(
            ("it is (too|so) dark in the {room}", "i cannot see anything in the {room}"),
            ("the {room} is far too dark",),
        ),
        deeds=("(turned|switched) on the {light} in the {room}", "lit up the {room}"),
        outcomes=("the {room} is bright", "the {light} in the {room} is on"),
    ),
    "lights_off": Intent(
        rivals=("lights_on", "device_status"),
        orders=Choices(
            (
                "(turn|switch) off the {light} in the {room}",
                "(turn|switch|put) the {light} in the {room} off",
                "make the {room} (darker|less bright)",
                "put out the {light} in the {room}",
            ),
            ("get the {light} off in the {room}", "shut off the {light} in the {room}"),
        ),
        remarks=Choices(
            (
                "it is (too|so) bright in the {room}",
                "nobody needs the {light} in the {room} any more",
            ),
            ("the {room} is far too bright",),
        ),
        deeds=("(turned|switched) off the {light} in the {room}", "put out the {light}"),
        outcomes=("the {room} is dark", "the {light} in the {room} is off"),
    ),
    "temperature_up": Intent(
        rivals=("temperature_down", "volume_up"),
        orders=Choices(
            (
                "turn up the {heat} in the {room}",
                "(turn|put) the {heat} in the {room} up",
                "make the {room} (warmer|less cold)",
                "raise the temperature in the {room} to {degrees}",
                "heat the {room}",
            ),
            ("warm up the {room}", "set the {heat} higher in the {room}"),
        ),
        remarks=Choices(
            (
                "it is (too cold|freezing) in the {room}, turn it up",
                "i am (cold|freezing) in the {room}",
            ),
            ("the {room} is too cold for me",),
        ),
        deeds=("turned up the {heat} in the {room}", "made the {room} warmer"),
        outcomes=("the {room} is warm", "it is warmer in the {room}"),
    ),
    "temperature_down": Intent(
        rivals=("temperature_up", "volume_down"),
        orders=Choices(
            (
                "turn down the {heat} in the {room}",
                "(turn|put) the {heat} in the {room} down",
                "make the {room} (cooler|less hot)",
                "lower the temperature in the {room} to {degrees}",
                "cool the {room}",
            ),
            ("cool down the {room}", "set the {heat} lower in the {room}"),
        ),
        remarks=Choices(
            (
                "it is (too hot|boiling) in the {room}, turn it down",
                "i am (sweating|boiling) in the {room}",
            ),
            ("the {room} is too hot for me",),
        ),
        deeds=("turned down the {heat} in the {room}", "made the {room} cooler"),
        outcomes=("the {room} is cool", "it is cooler in the {room}"),
    ),
    "volume_up": Intent(
        rivals=("volume_down", "temperature_up"),
        orders=Choices(
            (
                "turn up the {audio} in the {room}",
                "(turn|put) the {audio} in the {room} up",
                "make the {audio} louder",
                "raise the volume of the {audio}",
            ),
            ("set the {audio} higher", "give me more volume on the {audio}"),
        ),
        remarks=Choices(
            ("the {audio} is too quiet, turn it up", "i cannot hear the {audio} in the {room}"),
            ("the {audio} is far too quiet",),
        ),
        deeds=("turned up the {audio} in the {room}", "made the {audio} louder"),
        outcomes=("the {audio} is loud", "the {audio} is louder"),
    ),
    "volume_down": Intent(
        rivals=("volume_up", "temperature_down"),
        orders=Choices(
            (
                "turn down the {audio} in the {room}",
                "(turn|put) the {audio} in the {room} down",
                "make the {audio} (quieter|less loud)",
                "lower the volume of the {audio}",
            ),
            ("set the {audio} lower", "give me less volume on the {audio}"),
        ),
        remarks=Choices(
            ("the {audio} is too loud, turn it down", "nobody can sleep with the {audio} so loud"),
            ("the {audio} is far too loud",),
        ),
        deeds=("turned down the {audio} in the {room}", "made the {audio} quieter"),
        outcomes=("the {audio} is quiet", "the {audio} is quieter"),
    ),
    "open_window": Intent(
        rivals=("close_window", "unlock_door"),
        orders=Choices(
            (
                "open the {opening} in the {room}",
                "let some air into the {room}",
                "(pull|slide) the {opening} in the {room} open",
            ),
            ("get the {opening} open in the {room}", "air the {room}"),
        ),
        remarks=Choices(
            ("the air in the {room} is bad", "we need fresh air in the {room}"),
            ("there is no air in the {room}",),
        ),
        deeds=("opened the {opening} in the {room}", "let some air into the {room}"),
        outcomes=("the {opening} in the {room} is open", "there is fresh air in the {room}"),
    ),
    "close_window": Intent(
        rivals=("open_window", "lock_door"),
        orders=Choices(
            (
                "close the {opening} in the {room}",
                "(pull|slide) the {opening} in the {room} shut",
                "keep the wind out of the {room}",
            ),
            ("get the {opening} closed in the {room}", "keep the rain out of the {room}"),
        ),
        remarks=Choices(
            ("the rain comes into the {room}", "there is too much wind in the {room}"),
            ("the wind comes in through the {opening}",),
        ),
        deeds=("closed the {opening} in the {room}", "shut the {opening}"),
        outcomes=("the {opening} in the {room} is closed", "no wind comes into the {room}"),
    ),
    "lock_door": Intent(
        rivals=("unlock_door", "close_window", "device_status"),
        orders=Choices(
            ("lock the {door}", "(lock up|bolt) the {door}", "keep everybody out at the {door}"),
            ("get the {door} locked", "make sure nobody opens the {door}"),
        ),
        remarks=Choices(
            ("the {door} should be locked", "anybody can walk in through the {door}"),
            ("i want the {door} locked",),
        ),
        deeds=("locked the {door}", "bolted the {door}"),
        outcomes=("the {door} is locked", "nobody can come in through the {door}"),
    ),
    "unlock_door": Intent(
        rivals=("lock_door", "open_window", "device_status"),
        orders=Choices(
            ("unlock the {door}", "open the {door} for {person}", "let {person} in at the {door}"),
            ("get the {door} unlocked", "make sure {person} can open the {door}"),
        ),
        remarks=Choices(
            ("the {door} should be unlocked", "{person} is waiting outside the {door}"),
            ("i want the {door} unlocked",),
        ),
        deeds=("unlocked the {door}", "opened the {door} for {person}"),
        outcomes=("the {door} is unlocked", "{person} can come in through the {door}"),
    ),
    "set_timer": Intent(
        rivals=("cancel_timer", "device_status"),
        orders=Choices(
            (
                "(set|start) a timer for {duration}",
                "wake me in {duration}",
                "count down {duration} for the {dish}",
                "tell me when the {dish} had {duration}",
            ),
            ("set the {dish} timer to {duration}", "give me {duration} on the timer"),
        ),
        remarks=Choices(
            ("the {dish} needs {duration}", "i want to sleep for {duration}"),
            ("the {dish} should be done in {duration}",),
        ),
        deeds=("set a timer for {duration}", "started the {dish} timer"),
        outcomes=("the timer rings in {duration}", "the timer for the {dish} is running"),
    ),
    "cancel_timer": Intent(
        rivals=("set_timer", "stop_music"),
        orders=Choices(
            (
                "(stop|cancel) the timer for the {dish}",
                "forget about waking me in {duration}",
                "stop counting {duration} for the {dish}",
                "turn off the {dish} timer",
            ),
            ("end the {dish} timer", "drop the timer of {duration}"),
        ),
        remarks=Choices(
            ("the {dish} no longer needs the timer", "i need no timer of {duration} any more"),
            ("the {dish} is done, no more timer",),
        ),
        deeds=("stopped the timer for the {dish}", "cancelled the {dish} timer"),
        outcomes=("no timer is running for the {dish}", "the {dish} timer is off"),
    ),
    "play_music": Intent(
        rivals=("stop_music", "volume_up"),
        orders=Choices(
            (
                "(play|put on) {genre} in the {room}",
                "start {genre} on the {audio}",
                "let me hear {genre}",
                "turn on the {audio} with {genre}",
            ),
            ("let us listen to {genre} in the {room}", "get {genre} on the {audio}"),
        ),
        remarks=Choices(
            ("i would love to hear {genre}", "it is too silent in the {room}"),
            ("i am in the mood for {genre}",),
        ),
        deeds=("played {genre} in the {room}", "put on {genre}"),
        outcomes=("{genre} is playing in the {room}", "we can hear {genre}"),
    ),
    "stop_music": Intent(
        rivals=("play_music", "volume_down"),
        orders=Choices(
            (
                "stop {genre} in the {room}",
                "(stop|turn off|switch off) the {audio} in the {room}",
                "stop playing {genre}",
                "turn the {audio} off",
            ),
            ("end {genre} in the {room}", "make the {audio} stop"),
        ),
        remarks=Choices(
            ("i cannot stand {genre} any more", "i want to hear no more of {genre}"),
            ("nobody is listening to the {audio} any more",),
        ),
        deeds=("stopped {genre} in the {room}", "switched off the {audio}"),
        outcomes=("nothing is playing in the {room}", "the {audio} is off"),
    ),
    "navigate_to": Intent(
        rivals=("check_traffic", "find_charger"),
        orders=Choices(
            (
                "(take|drive|bring) me to {place}",
                "show me the way to {place}",
                "find a way to {place} over {road}",
                "start the route to {place}",
            ),
            ("get me to {place}", "guide me to {place} over {road}"),
        ),
        remarks=Choices(
            ("i need to get to {place}", "how do i get to {place}"), ("which way is it to {place}",)
        ),
        deeds=("drove to {place}", "took {road} to {place}"),
        outcomes=("we are on the way to {place}", "the route to {place} goes over {road}"),
    ),
    "check_traffic": Intent(
        rivals=("navigate_to", "find_charger"),
        orders=Choices(
            (
                "check the traffic on {road}",
                "tell me about the traffic on the way to {place}",
                "see if {road} to {place} is free",
                "find out how long it takes to {place}",
            ),
            ("look at the traffic to {place}", "check how busy {road} is"),
        ),
        remarks=Choices(
            ("is there a jam on {road}", "how long does it take to get to {place}"),
            ("is {road} busy on the way to {place}",),
        ),
        deeds=("checked the traffic on {road}", "looked at the traffic to {place}"),
        outcomes=("there is a jam on {road}", "it takes {duration} to get to {place}"),
    ),
    "find_charger": Intent(
        rivals=("navigate_to", "check_traffic"),
        orders=Choices(
            (
                "find a (charger|charging station) near {place}",
                "show me where to charge the car near {place}",
                "take me to a charger on the way to {place}",
            ),
            ("look for a charger on {road}", "find power for the car near {place}"),
        ),
        remarks=Choices(
            ("the battery will not last to {place}", "where can i charge the car on {road}"),
            ("the car needs power before {place}",),
        ),
        deeds=("charged the car near {place}", "found a charger on {road}"),
        outcomes=("the battery is full", "there is a charger near {place}"),
    ),
    "call_contact": Intent(
        rivals=("send_message",),
        orders=Choices(
            (
                "(call|ring|phone) {person}",
                "get {person} on the phone",
                "call {person} and ask about the {dish}",
                "let me talk to {person}",
            ),
            ("start a call with {person}", "put me through to {person}"),
        ),
        remarks=Choices(
            ("i want to talk to {person}", "i need {person} on the line"),
            ("i have to speak with {person}",),
        ),
        deeds=("called {person}", "talked to {person} on the phone"),
        outcomes=("{person} is on the phone", "we are talking to {person}"),
    ),
    "send_message": Intent(
        rivals=("call_contact", "set_timer"),
        orders=Choices(
            (
                "tell {person} that {excuse}",
                "(text|write to) {person} that {excuse}",
                "tell {person} to {other}",
                "ask {person} to {other}",
                "send a message to {person} that {excuse}",
            ),
            ("let {person} know that {excuse}", "write {person} to {other}"),
        ),
        remarks=Choices(
            ("{person} should know that {excuse}", "does {person} know that {excuse}"),
            ("somebody should tell {person} that {excuse}",),
        ),
        deeds=("told {person} that {excuse}", "wrote to {person}"),
        outcomes=("{person} knows that {excuse}", "{person} has got a message"),
    ),
    "device_status": Intent(
        rivals=("lock_door", "lights_off", "temperature_up"),
        orders=Choices(
            (
                "check if the {light} in the {room} is (on|off)",
                "tell me if the {door} is (locked|open)",
                "tell me how (warm|cold) it is in the {room}",
                "check if the {opening} in the {room} is (open|closed)",
                "see if the timer for the {dish} is still running",
            ),
            (
                "find out if the {light} in the {room} is (on|off)",
                "look if the {door} is (locked|unlocked)",
            ),
        ),
        remarks=Choices(
            (
                "is the {light} in the {room} still (on|off)",
                "did i (lock|unlock) the {door}",
                "how (warm|cold) is it in the {room}",
                "who turned (up|down) the {heat} in the {room}",
            ),
            (
                "did i (open|close) the {opening} in the {room}",
                "is the {audio} in the {room} (on|off)",
            ),
        ),
        deeds=("had a look and answered", "checked it and told everybody"),
        outcomes=("the answer is known", "everybody knows how it is"),
    ),
}
